"""Garbage is what no kept run reaches; whatever is young, claimed or needed by that stays, also during a sweep."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts import FusedRef, ModelRef, Ref, Runtime, ScoredRef, StoreError
from tasks.library.garbage import Garbage, find_garbage, sweep
from tasks.library.lineage import Library, RunRecord, record_run
from tasks.step import Output, step
from tasks.storage.claims import Claims, this_process
from tasks.storage.objects import Objects
from tasks.storage.partial import KEPT_SECONDS, Parts
from tasks.storage.store import Store, open_store
from tasks.training.checkpoints import Checkpoints

HOUR = 3600.0


@step(version=1)
def download(name: str, *, runtime: Runtime, out: Output) -> ModelRef:
    """A model."""
    (out.dir / "deep").mkdir()
    (out.dir / "deep" / "weights").write_text(name * 10)
    return out.ref(ModelRef)


@step(version=1)
def extract(model: ModelRef, *, runtime: Runtime, out: Output) -> ScoredRef:
    """What a model says."""
    (out.dir / "scores").write_text(model.fingerprint)
    return out.ref(ScoredRef)


@step(version=1)
def fuse(scored: ScoredRef, *, runtime: Runtime, out: Output) -> FusedRef:
    """A teacher."""
    (out.dir / "teacher").write_text(scored.fingerprint)
    return out.ref(FusedRef)


def garbage_in(store: Store, *keep: Ref, min_age: float = 0.0) -> list[Garbage]:
    return find_garbage(Library.load(store), keep, min_age)


def kinds(garbage: list[Garbage]) -> list[tuple[str, str]]:
    return [(item.kind, item.path) for item in garbage]


def age(store: Store, start: str, seconds: float = 2 * HOUR) -> None:
    """Makes everything below `start` older, on a disk."""
    for path in store.listing():
        if path.startswith(start):
            os.utime(Path(store.base, path), (time.time() - seconds,) * 2)


@pytest.fixture
def disk(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "disk"))


def test_what_no_kept_run_reaches_goes_and_nothing_else(runtime: Runtime) -> None:
    store = open_store(runtime)
    kept_model, lost_model = (download.fn(name, runtime=runtime) for name in ("kept", "lost"))
    kept, lost = extract.fn(kept_model, runtime=runtime), extract.fn(lost_model, runtime=runtime)
    before = store.listing()
    found = garbage_in(store, kept)
    assert kinds(found) == sorted([("artifact", lost_model.address), ("artifact", lost.address)], key=lambda k: k[1])
    assert store.listing() == before, "looking changes nothing"
    assert sweep(store, found) == found
    after = store.listing()
    assert sum(item.bytes for item in found) == sum(e.bytes for p, e in before.items() if p not in after)
    assert set(Library.load(store).manifests) == {kept.address, kept_model.address}
    assert Library.load(store).verify() == []
    assert garbage_in(store, kept) == []
    assert {path.rsplit("/", 1)[0].split("/")[1] for path in after} == {kept.fingerprint, kept_model.fingerprint}


def test_young_things_stay_and_so_does_what_they_were_made_from(disk: Runtime) -> None:
    store = open_store(disk)
    model, other = download.fn("model", runtime=disk), download.fn("other", runtime=disk)
    scored = extract.fn(model, runtime=disk)
    assert garbage_in(store, min_age=HOUR) == []
    age(store, "download/")
    assert kinds(garbage_in(store, min_age=HOUR)) == [("artifact", other.address)]
    age(store, "extract/")
    assert len(garbage_in(store, min_age=HOUR)) == 3
    assert len(garbage_in(store, scored, min_age=HOUR)) == 1


def test_an_attempt_goes_only_without_its_owner(store: Store) -> None:
    address = f"extract/{'a' * 32}"
    with Claims(store, address, "0123456789ab", 60.0).acquire() or pytest.fail("no claim"):
        store.write(f"{address}/0123456789ab/deep/half", b"half")
        assert garbage_in(store) == []
    (found,) = garbage_in(store)
    assert (found.kind, found.path, found.bytes) == ("attempt", f"{address}/0123456789ab", 4)
    assert garbage_in(store, min_age=HOUR) == []
    sweep(store, [found])
    assert store.listing() == {}


def test_attempts_beside_a_kept_artifact_go(disk: Runtime) -> None:
    store, ref = open_store(disk), download.fn("model", runtime=disk)
    store.write(f"{ref.address}/lost-the-race/weights", b"x")
    store.write(f"{ref.address}/.MANIFEST.json.0123abcd", b"x")
    (Path(store.base) / ref.address / "killed-at-once").mkdir()
    found = garbage_in(store, ref)
    assert [item.kind for item in found] == ["attempt"] * 3
    sweep(store, found)
    manifest = store.manifest(ref)
    assert manifest is not None
    assert store.names(ref.address) == sorted([manifest.owner, "MANIFEST.json"])
    assert Library.load(store).verify() == []


def claim_of(store: Store, address: str, age_seconds: float, inputs: list[str] | None = None, **who: object) -> None:
    body = {"owner": "o", "lease_seconds": 60.0, "inputs": inputs or [], **this_process(), **who}
    store.write(f"{address}/CLAIM.000000", json.dumps(body).encode())
    age(store, f"{address}/CLAIM", age_seconds)


@pytest.mark.parametrize(
    ("who", "age_seconds", "is_live"),
    [
        ({}, 10 * HOUR, True),  # a process of this host that is there, if asleep
        ({"pid": 2**22 + 1}, 10.0, False),
        ({"host": "elsewhere"}, 60.0, True),
        ({"host": "elsewhere"}, 10 * HOUR, False),
    ],
    ids=["alive", "gone", "elsewhere-renewed", "elsewhere-silent"],
)
def test_a_live_claim_protects_its_folder_and_its_inputs(
    disk: Runtime, who: dict[str, object], age_seconds: float, is_live: bool
) -> None:
    store, model = open_store(disk), download.fn("model", runtime=disk)
    address = f"extract/{'a' * 32}"
    store.write(f"{address}/0123456789ab/half", b"half")
    age(store, "")
    claim_of(store, address, age_seconds, [model.address], **who)
    found = garbage_in(store, min_age=300.0)
    expected = [] if is_live else [("artifact", model.address), ("attempt", f"{address}/0123456789ab")]
    if not is_live and age_seconds >= 300:
        expected.insert(1, ("claim", f"{address}/CLAIM.000000"))
    assert sorted(kinds(found)) == sorted(expected)


def test_a_dead_claim_goes_with_its_folder(disk: Runtime) -> None:
    store, address = open_store(disk), f"extract/{'a' * 32}"
    claim_of(store, address, 2 * HOUR, pid=2**22 + 1)
    store.write(f"{address}/0123456789ab/half", b"half")
    age(store, "")
    assert len(sweep(store, garbage_in(store, min_age=HOUR))) == 2
    assert list(Path(store.base).iterdir()) == []


def test_foreign_files_are_never_garbage(store: Store) -> None:
    foreign = ["notes.txt", "thesis/chapter.tex", f"thesis/{'a' * 31}/x", "runs/run.json", "pins/hub/x.json", ".bashrc"]
    for path in foreign:
        store.write(path, b"precious")
    assert garbage_in(store) == []


def test_nothing_is_collected_beside_a_manifest_that_cannot_be_read(disk: Runtime) -> None:
    store, torn = open_store(disk), download.fn("torn", runtime=disk)
    lost = download.fn("lost", runtime=disk)
    found = garbage_in(store)
    store.write(f"{torn.address}/MANIFEST.json", b"{")
    with pytest.raises(StoreError, match=f"found 1 that can't .*{torn.address}: the manifest is not a JSON"):
        garbage_in(store)
    with pytest.raises(StoreError, match="found 1 that can't"):
        sweep(store, found)
    assert store.manifest(lost) is not None


def test_what_killed_processes_leave_outside_artifacts_goes(disk: Runtime) -> None:
    store = open_store(disk)
    for path in (f"probe-{'0' * 32}", f".probe-{'0' * 32}.01234567", "runs/.id.json.01234567"):
        store.write(path, b"x")
    found = garbage_in(store)
    assert {item.kind for item in found} == {"stray"}
    assert len(sweep(store, found)) == 3
    assert store.listing() == {}


def test_unfinished_uploads_go_unless_somebody_works_there(s3_root: str, tmp_path: Path) -> None:
    store = Store(s3_root, cache_dir=str(tmp_path))
    addresses = [f"extract/{letter * 32}" for letter in "ab"]
    for path in (*(f"{address}/owner/big" for address in addresses), "thesis/big"):
        bucket, _, key = f"{store.base}/{path}".partition("/")
        store.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    with Claims(store, addresses[0], "owner", 60.0).acquire() or pytest.fail("no claim"):
        found = garbage_in(store)
        assert kinds(found) == [("upload", f"{addresses[1]}/owner/big")]
        sweep(store, found)
    assert sorted(upload.path for upload in store.unfinished_uploads()) == [f"{addresses[0]}/owner/big", "thesis/big"]
    assert garbage_in(store, min_age=HOUR) == []


# ---- between looking and sweeping ----------------------------------------------------------------------


def test_an_artifact_that_was_made_anew_meanwhile_stays(runtime: Runtime) -> None:
    store, ref = open_store(runtime), download.fn("model", runtime=runtime)
    found = garbage_in(store)
    old = store.manifest(ref)
    assert old is not None
    store.withdraw(old)
    download.fn("model", runtime=runtime)
    assert sweep(store, found) == []
    assert Library.load(store).verify([ref]) == []


def test_an_attempt_that_was_committed_meanwhile_stays(disk: Runtime) -> None:
    store, ref = open_store(disk), download.fn("model", runtime=disk)
    mark = store.read(f"{ref.address}/MANIFEST.json")
    assert mark is not None
    store.remove(f"{ref.address}/MANIFEST.json")
    found = garbage_in(store)
    assert [item.kind for item in found] == ["attempt"]
    store.write(f"{ref.address}/MANIFEST.json", mark)
    assert sweep(store, found) == []
    assert Library.load(store).verify([ref]) == []


def test_nothing_goes_where_somebody_came_to_work_meanwhile(disk: Runtime) -> None:
    store, ref = open_store(disk), download.fn("model", runtime=disk)
    found = garbage_in(store)
    with Claims(store, ref.address, "newcomer", 60.0).acquire() or pytest.fail("no claim"):
        assert sweep(store, found) == []
    assert sweep(store, found) == found


def test_a_removal_that_is_killed_half_way_leaves_no_false_hit(disk: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ref = open_store(disk), download.fn("model", runtime=disk)
    manifest = store.manifest(ref)
    assert manifest is not None

    def killed(self: Objects, path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            store.withdraw(manifest)
    assert store.manifest(ref) is None
    assert [item.kind for item in garbage_in(store)] == ["attempt"]
    assert download.fn("model", runtime=disk) == ref
    assert Library.load(store).verify([ref]) == []


def _keep_checkpoint(store: Store, folder: Path, address: str) -> None:
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "weights").write_bytes(b"half-way")
    Checkpoints(store, address).save(folder / "state", 1)


def test_checkpoints_of_a_killed_training_are_kept_for_a_week(disk: Runtime, tmp_path: Path) -> None:
    store, address = open_store(disk), "train/" + "a" * 32
    _keep_checkpoint(store, tmp_path, address)
    age(store, address, KEPT_SECONDS - HOUR)
    assert garbage_in(store) == []
    age(store, address, KEPT_SECONDS + HOUR)
    claim = Claims(store, address, "owner", lease_seconds=60.0).acquire()
    assert claim is not None
    assert garbage_in(store) == []  # somebody goes on with it
    claim.release()
    assert kinds(sweep(store, garbage_in(store))) == [("checkpoint", f"{address}/checkpoints")]
    assert store.listing() == {}


def test_parts_of_an_unfinished_artifact_are_kept_for_a_week(disk: Runtime) -> None:
    store, address = open_store(disk), "extract/" + "b" * 32
    Parts(store, address).save("0", lambda folder: (folder / "rows").write_bytes(b"rows") and None)
    age(store, address, KEPT_SECONDS - HOUR)
    assert garbage_in(store) == []
    age(store, address, KEPT_SECONDS + HOUR)
    assert kinds(sweep(store, garbage_in(store))) == [("part", f"{address}/partial")]
    assert store.listing() == {}


def test_checkpoints_of_a_published_model_are_needed_no_more(disk: Runtime, tmp_path: Path) -> None:
    store = open_store(disk)
    model = download.fn("kept", runtime=disk)
    _keep_checkpoint(store, tmp_path, model.address)
    assert kinds(sweep(store, garbage_in(store, model))) == [("checkpoint", f"{model.address}/checkpoints")]
    assert store.fetch(model).is_dir()


def _note_run(runtime: Runtime, needed: ScoredRef) -> None:
    record = RunRecord(name="late", started_at="2026-01-01T00:00:00+00:00", recipe={}, refs=[needed])
    record_run(open_store(runtime), record, run_id="late")


def _claim_with(runtime: Runtime, needed: ScoredRef) -> None:
    claim_of(open_store(runtime), f"fuse/{'a' * 32}", 0.0, [needed.address])


def _make_of(runtime: Runtime, needed: ScoredRef) -> None:
    fuse.fn(needed, runtime=runtime)


@pytest.mark.parametrize("come_to_need", [_note_run, _claim_with, _make_of])
def test_what_somebody_has_come_to_need_since_the_look_stays_with_all_behind_it(
    disk: Runtime, come_to_need: Callable[[Runtime, ScoredRef], None]
) -> None:
    store = open_store(disk)
    needed = extract.fn(download.fn("needed", runtime=disk), runtime=disk)
    lost = download.fn("lost", runtime=disk)
    found = garbage_in(store)
    assert len(found) == 3
    come_to_need(disk, needed)
    assert kinds(sweep(store, found)) == [("artifact", lost.address)]
    assert Library.load(store).verify([needed]) == []
