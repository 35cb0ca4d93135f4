"""Artifacts: published whole and once, checked when read; the same bytes on a folder and in a bucket."""

import mmap
import os
import time
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from tasks.artifacts import Manifest, ModelRef, Runtime, StoreError
from tasks.running.transient import is_transient
from tasks.storage.objects import S3_OPTIONS
from tasks.storage.store import ABANDONED_SECONDS, IN_USE_SECONDS, PART_SECONDS, Store, open_store

REF = ModelRef(step="train", fingerprint="0" * 32)
FILES = {"config.json": b'{"layers": 2}', "weights/part-1.bin": b"\x00\x01" * 5000, "empty": b""}


def make_attempt(store: Store, owner: str, files: dict[str, bytes] = FILES) -> tuple[Manifest, Path]:
    """Everything of an attempt up to its commit."""
    folder = store.scratch(REF.address, owner)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    facts = store.upload(folder, REF.address, owner)
    about = {"step": REF.step, "version": 1, "fingerprint": REF.fingerprint, "started_at": "2026-01-01", "seconds": 1.0}
    return Manifest(ref=REF, arguments={}, files=facts, owner=owner, **about), folder


def publish(store: Store, owner: str = "attempt1", files: dict[str, bytes] = FILES) -> Manifest:
    manifest, folder = make_attempt(store, owner, files)
    assert store.commit(manifest, folder)
    return manifest


def stored_file(store: Store, manifest: Manifest, name: str) -> str:
    return f"{REF.address}/{manifest.files[name].path}"


def test_what_is_published_is_fetched_byte_for_byte(store: Store) -> None:
    manifest = publish(store)
    assert store.manifest(REF) == manifest
    folder = store.fetch(REF)
    assert {name: (folder / name).read_bytes() for name in manifest.files} == FILES
    assert manifest.total_bytes == sum(map(len, FILES.values()))
    assert store.damage(manifest) == []


def test_nothing_is_seen_before_the_commit(store: Store) -> None:
    manifest, folder = make_attempt(store, "attempt1")
    assert store.manifest(REF) is None
    with pytest.raises(StoreError, match="no such artifact"):
        store.fetch(REF)
    store.commit(manifest, folder)
    assert store.manifest(REF) is not None


def test_first_writer_wins_and_the_loser_leaves_nothing(store: Store) -> None:
    first, first_folder = make_attempt(store, "attempt1")
    second, second_folder = make_attempt(store, "attempt2", {"config.json": b"other"})
    assert store.commit(first, first_folder)
    assert not store.commit(second, second_folder)
    assert store.manifest(REF) == first
    assert not any("attempt2" in path for path in store.listing())
    assert not second_folder.exists()


def test_named_files_are_fetched_alone(s3_root: str, tmp_path: Path) -> None:
    publish(Store(s3_root, cache_dir=str(tmp_path / "maker")))
    reader = Store(s3_root, cache_dir=str(tmp_path / "reader"))
    folder = reader.fetch(REF, ["config.json"])
    assert sorted(p.name for p in folder.rglob("*")) == ["config.json"]
    with pytest.raises(StoreError, match=r"expected a file 'nope', found config\.json, empty"):
        reader.fetch(REF, ["nope"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (b'{"layers": 3}', "config.json: expected sha256 .*, found .*; delete the folder"),
        (b'{"layers"', "config.json: expected 13 bytes, found 9; delete the folder"),
        (None, "config.json: missing.*; delete the folder"),
    ],
    ids=["damaged", "truncated", "missing"],
)
def test_a_file_that_differs_from_its_manifest_is_refused_by_name(
    store: Store, tmp_path: Path, change: bytes | None, sentence: str
) -> None:
    manifest = publish(store)
    path = stored_file(store, manifest, "config.json")
    if change is None:
        store.remove(path)
    else:
        store.write(path, change)
    reader = Store(store.root, cache_dir=str(tmp_path / "reader"))
    with pytest.raises(StoreError, match=sentence):
        reader.fetch(REF)
    assert [line.split(": ")[0] for line in reader.damage(manifest)] == [f"{REF.address}/config.json"]
    assert not list((tmp_path / "reader").rglob("*.part"))


def test_damage_in_the_local_cache_is_mended_from_the_store(s3_root: str, tmp_path: Path) -> None:
    publish(Store(s3_root, cache_dir=str(tmp_path / "cache")))
    config = Store(s3_root, cache_dir=str(tmp_path / "cache")).fetch(REF) / "config.json"
    config.write_bytes(b"bad")
    folder = Store(s3_root, cache_dir=str(tmp_path / "cache")).fetch(REF)
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_bytes_that_change_on_their_way_are_read_again(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = publish(Store(s3_root, cache_dir=str(tmp_path / "maker")))
    reader = Store(s3_root, cache_dir=str(tmp_path / "reader"))
    honest_cat, honest_get = reader.fs.cat_file, reader.fs.get_file
    asked: list[str] = []

    def cat(path: str, **options: int) -> bytes:
        asked.append(path)
        data = bytes(honest_cat(path, **options))
        return data.replace(b"train", b"drain", 1) if asked.count(path) == 1 else data

    def get(path: str, local: str) -> None:
        asked.append(path)
        honest_get(path, local)
        if asked.count(path) == 1:
            Path(local).write_bytes(b"other")

    monkeypatch.setattr(reader.fs, "cat_file", cat)
    monkeypatch.setattr(reader.fs, "get_file", get)
    assert reader.manifest(REF) == manifest
    folder = reader.fetch(REF)
    assert {name: (folder / name).read_bytes() for name in manifest.files} == FILES


def test_what_was_made_here_is_not_fetched_again(s3_root: str, tmp_path: Path) -> None:
    store = Store(s3_root, cache_dir=str(tmp_path / "cache"))
    manifest = publish(store)
    for name in manifest.files:
        store.remove(stored_file(store, manifest, name))
    assert (store.fetch(REF) / "config.json").read_bytes() == FILES["config.json"]


def test_the_cache_drops_what_was_used_longest_ago_and_nothing_in_use(s3_root: str, tmp_path: Path) -> None:
    maker = Store(s3_root, cache_dir=str(tmp_path / "maker"))
    publish(maker)
    store = Store(s3_root, cache_dir=str(tmp_path / "cache"), cache_bytes=11_000)
    (store.cache / "files").mkdir(parents=True)
    old, older, fresh = (store.cache / "files" / name for name in ("old", "older", "fresh"))
    for age, path in ((IN_USE_SECONDS + 60, old), (IN_USE_SECONDS + 120, older), (0, fresh)):
        path.write_bytes(b"x" * 5000)
        os.utime(path, (time.time() - age,) * 2)
    store.fetch(REF)
    assert not older.exists()
    assert not old.exists()
    assert fresh.exists()
    assert (store.fetch(REF) / "weights/part-1.bin").exists()


def test_a_fetch_longer_than_the_time_in_use_keeps_its_own_files(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = publish(Store(s3_root, cache_dir=str(tmp_path / "maker")))
    store = Store(s3_root, cache_dir=str(tmp_path / "cache"), cache_bytes=1)
    honest_get = store.fs.get_file

    def get(path: str, local: str) -> None:
        honest_get(path, local)
        _age(store, IN_USE_SECONDS + 60)

    monkeypatch.setattr(store.fs, "get_file", get)
    folder = store.fetch(REF)
    assert {name: (folder / name).read_bytes() for name in manifest.files} == FILES
    other = Store(s3_root, cache_dir=str(tmp_path / "cache"), cache_bytes=1)
    other._evict()  # what a fetch of something else ends with, in another process
    assert all((folder / name).exists() for name in manifest.files)


def test_a_download_under_way_is_not_evicted_and_one_of_a_killed_process_is(s3_root: str, tmp_path: Path) -> None:
    publish(Store(s3_root, cache_dir=str(tmp_path / "maker")))
    store = Store(s3_root, cache_dir=str(tmp_path / "cache"), cache_bytes=1)
    (store.cache / "files").mkdir(parents=True)
    ages = {"begun": IN_USE_SECONDS + 60, "left": PART_SECONDS + 60, "written": 0.0}
    begun, left, written = (store.cache / "files" / f"{name}.0a1b2c3d.part" for name in ages)
    for path, age in zip((begun, left, written), ages.values(), strict=True):
        path.write_bytes(b"x" * 5000)
        os.utime(path, (time.time() - PART_SECONDS - 60, time.time() - age))  # writing doesn't move the access time
    store.fetch(REF)
    assert begun.exists()
    assert written.exists()
    assert not left.exists()


def _age(store: Store, seconds: float) -> None:
    for path in (store.cache / "files").rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_is_made_here_makes_room_for_itself(s3_root: str, tmp_path: Path) -> None:
    store = Store(s3_root, cache_dir=str(tmp_path / "cache"), cache_bytes=10)
    old = store.cache / "files" / "old"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x" * 5000)
    os.utime(old, (time.time() - IN_USE_SECONDS - 60,) * 2)
    publish(store)
    assert not old.exists()
    assert (store.fetch(REF) / "config.json").exists()


def test_a_reader_keeps_what_it_has_mapped_when_the_cache_lets_go_of_it(s3_root: str, tmp_path: Path) -> None:
    publish(Store(s3_root, cache_dir=str(tmp_path / "maker")))
    store = Store(s3_root, cache_dir=str(tmp_path / "cache"), cache_bytes=1)
    path = store.fetch(REF) / "weights/part-1.bin"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for other in (store.cache / "files").rglob("*.*"):
            os.utime(other, (time.time() - IN_USE_SECONDS - 60,) * 2)
        store.fetch(REF, ["config.json"])  # in its place already: nothing new, so nothing has to go
        assert path.exists()
        (path.parent.parent / "config.json").unlink()
        store.fetch(REF, ["config.json"])
        assert not path.exists()
        assert mapped[:] == FILES["weights/part-1.bin"]
    assert (store.fetch(REF) / "weights/part-1.bin").read_bytes() == FILES["weights/part-1.bin"]


def test_abandoned_attempts_leave_the_cache_after_a_week(s3_root: str, tmp_path: Path) -> None:
    store = Store(s3_root, cache_dir=str(tmp_path / "cache"))
    abandoned, at_work = store.scratch(REF.address, "abandoned"), store.scratch(REF.address, "at-work")
    os.utime(abandoned, (time.time() - ABANDONED_SECONDS - 60,) * 2)
    store.scratch(REF.address, "next")
    assert not abandoned.exists()
    assert at_work.exists()


def test_a_hash_is_computed_once_per_state_of_a_file(store: Store) -> None:
    publish(store)
    config = store.fetch(REF) / "config.json"
    known = config.stat()
    config.write_bytes(b'{"layers": 9}')
    os.utime(config, ns=(known.st_atime_ns, known.st_mtime_ns))  # same size, same time: not looked at again
    store.fetch(REF)
    os.utime(config)
    if store.is_local:
        with pytest.raises(StoreError, match="expected sha256"):
            store.fetch(REF)
    else:
        assert (store.fetch(REF) / "config.json").read_bytes() == FILES["config.json"]


def test_a_withdrawn_artifact_is_a_miss_and_leaves_nothing(store: Store) -> None:
    manifest = publish(store)
    store.withdraw(manifest)
    assert store.manifest(REF) is None
    assert store.listing() == {}


def test_a_newer_schema_is_refused_by_name(store: Store) -> None:
    manifest = publish(store)
    newer = manifest.model_copy(update={"schema_version": 99})
    store.write(f"{REF.address}/MANIFEST.json", newer.to_json())
    with pytest.raises(StoreError, match=rf"{REF.address}: expected .* schema 1 or older, found 99; upgrade"):
        store.manifest(REF)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff\xfe"])
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    store = Store(str(tmp_path))
    store.write(f"{REF.address}/MANIFEST.json", data)
    with pytest.raises(StoreError, match=f"{REF.address}: the manifest.*delete the folder"):
        store.manifest(REF)


def test_both_kinds_of_store_hold_the_same_files(s3_root: str, tmp_path: Path) -> None:
    local, bucket = Store(str(tmp_path / "store")), Store(s3_root, cache_dir=str(tmp_path / "cache"))
    assert publish(local) == publish(bucket)
    assert len(local.listing()) == 4
    assert sorted(local.listing()) == sorted(bucket.listing())
    assert all(local.read(path) == bucket.read(path) for path in local.listing())


def test_one_store_per_root_whatever_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    first = open_store(Runtime(root="./store"))
    assert open_store(Runtime(root=str(tmp_path / "a/store"), device="cpu")) is first
    monkeypatch.chdir(tmp_path / "b")
    assert open_store(Runtime(root="./store")) is not first


def test_a_root_and_a_cache_may_lie_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = open_store(Runtime(root="~/store", cache_dir="~/cache"))
    assert store.base == str(tmp_path / "store")
    assert store.cache.parent == tmp_path / "cache"


# ---- before a run --------------------------------------------------------------------------------------


def test_a_usable_store_passes_the_probe_and_keeps_no_trace(store: Store) -> None:
    store.probe(needed_bytes=1)
    assert store.listing() == {}


def test_too_little_space_is_found_before_computing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"the run needs about 1000000000\.0 GB, [\d.]+ GB are free; free some space"):
        Store(str(tmp_path / "store")).probe(needed_bytes=10**18)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="can be written and read, found PermissionError"):
            Store(str(tmp_path / "store")).probe()
    finally:
        tmp_path.chmod(0o700)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="expected a folder, or a place for one, found a file"):
        Store(str(tmp_path / "file")).probe()


def test_a_bucket_that_is_not_there_is_refused(s3_endpoint: str) -> None:
    with pytest.raises(StoreError, match=r"store s3://no-such-bucket/x: expected a place .* bucket does not exist"):
        Store("s3://no-such-bucket/x").probe()


def test_an_unreachable_store_is_refused_and_not_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setitem(S3_OPTIONS["config_kwargs"], "retries", {"mode": "standard", "max_attempts": 1})
    S3FileSystem.clear_instance_cache()  # it knows nothing of the changed environment
    try:
        with pytest.raises(StoreError, match=r"store s3://nobodys/x: expected a place .*127\.0\.0\.1:9") as caught:
            Store("s3://nobodys/x").probe()
    finally:
        S3FileSystem.clear_instance_cache()
    assert caught.value.__cause__ is not None
    assert is_transient(caught.value.__cause__)


def test_a_store_without_conditional_writes_is_refused() -> None:
    class Forgetful(Store):
        """Like a server that takes `If-None-Match` for noise."""

        def create(self, path: str, data: bytes) -> bool:
            self.write(path, data)
            return True

    with pytest.raises(StoreError, match="If-None-Match is ignored"):
        Forgetful("memory://somewhere").probe()
