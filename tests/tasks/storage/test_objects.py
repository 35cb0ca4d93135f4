"""Objects: whole or absent, one winner per create; the same on a folder and in a bucket of a real server."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.artifacts import StoreError
from tasks.storage.objects import Objects
from tasks.storage.store import Store

RACER = """
import sys
from tasks.storage.objects import Objects
objects = Objects(sys.argv[1])
objects.read("warm-up")
print("ready", flush=True)
sys.stdin.readline()
print(objects.create("a/b/prize", sys.argv[2].encode()))
"""


def test_create_has_one_winner_among_eight_threads(store: Store) -> None:
    for contest in range(5):
        barrier = threading.Barrier(8)

        def compete(racer: int, path: str = f"step/{contest}/prize", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return store.create(path, f"racer {racer}".encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(compete, range(8)))
        assert won.count(True) == 1
        assert store.read(f"step/{contest}/prize") == f"racer {won.index(True)}".encode()


@pytest.mark.parametrize(("root", "count"), [("local", 8), ("s3", 4)], indirect=["root"])
def test_create_has_one_winner_among_processes(root: str, count: int) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, root, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(count)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(won) == ["False"] * (count - 1) + ["True"]
    assert Objects(root).read("a/b/prize") == str(won.index("True")).encode()


def test_a_create_whose_reply_was_lost_counts_as_won(store: Store) -> None:
    assert store.create("step/mark", b"owner 1")
    assert store.create("step/mark", b"owner 1")  # what a client's retry does after a lost reply
    assert not store.create("step/mark", b"owner 2")


def test_readers_never_see_a_torn_object(store: Store) -> None:
    bodies = {letter * 200_000 for letter in (b"a", b"b")}
    store.write("step/object", b"a" * 200_000)
    done, seen = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(store.read("step/object"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        for body in bodies:
            store.write("step/object", body)
    done.set()
    reader.join()
    assert seen <= bodies


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    objects = Objects(str(tmp_path))
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        objects.create("mark", b"data")
    assert list(tmp_path.iterdir()) == []


def test_absent_is_none_empty_and_fine_to_remove(store: Store) -> None:
    assert store.read("no/such") is None
    assert store.names("no/such") == []
    assert store.names("no/such", "CLAIM.") == []
    assert store.listing() == {}
    store.remove("no/such")
    store.delete("no/such")


def test_names_are_those_directly_below(store: Store) -> None:
    for path in ("s/f/CLAIM.000001", "s/f/attempt/data", "s/f/MANIFEST.json", "s/f2/CLAIM.000000"):
        store.write(path, b"x")
    assert store.names("s/f") == ["CLAIM.000001", "MANIFEST.json", "attempt"]
    assert store.names("s/f", "CLAIM.") == ["CLAIM.000001"]
    assert store.names() == ["s"]


def test_delete_takes_a_folder_and_not_its_namesakes(store: Store) -> None:
    for path in ("s/f/x", "s/f/deep/y", "s/f2/z"):
        store.write(path, b"x")
    store.delete("s/f")
    assert list(store.listing()) == ["s/f2/z"]


def test_a_local_store_keeps_no_empty_folders(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path / "store"))
    objects.write("step/print/CLAIM.000000", b"x")
    objects.write("step/print/attempt/data", b"x")
    objects.remove("step/print/CLAIM.000000")
    assert (tmp_path / "store/step/print/attempt/data").exists()
    objects.delete("step/print/attempt")
    assert list((tmp_path / "store").iterdir()) == []


def test_creating_beside_somebody_who_clears_up_never_fails(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path))

    def create_and_remove(worker: int) -> None:
        for turn in range(150):
            assert objects.create(f"step/print/{worker}-{turn}", b"x")
            objects.remove(f"step/print/{worker}-{turn}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create_and_remove, range(4)))
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_disk_that_are_not_ours_are_not_looked_into(tmp_path: Path) -> None:
    store = Objects(str(tmp_path))
    store.write("step/mark", b"ours")
    store.write("lost+found/7", b"the file system's")
    assert list(store.listing()) == ["step/mark"]


def test_listing_and_clock_tell_sizes_and_ages(store: Store) -> None:
    store.write("a/b/c", b"12345")
    (path, entry), *rest = store.listing().items()
    assert (path, entry.bytes, rest) == ("a/b/c", 5, [])
    assert -1.0 <= store.clock() - entry.modified < 30.0  # S3 stamps whole seconds
    assert list(store.listing()) == ["a/b/c"]


def test_unfinished_uploads_are_found_below_the_root_and_aborted(s3_root: str) -> None:
    objects, neighbour = Objects(s3_root), Objects(s3_root + "-other")
    for one in (objects, neighbour):
        bucket, _, key = f"{one.base}/step/print/big".partition("/")
        one.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    (upload,) = objects.unfinished_uploads()
    assert upload.path == "step/print/big"
    assert abs(objects.clock() - upload.started) < 30
    objects.abort_upload(upload)
    objects.abort_upload(upload)  # gone is fine
    assert objects.unfinished_uploads() == []
    assert len(neighbour.unfinished_uploads()) == 1


def test_a_local_store_has_no_unfinished_uploads(tmp_path: Path) -> None:
    assert Objects(str(tmp_path)).unfinished_uploads() == []


@pytest.mark.parametrize("root", ["s3://", "gopher://x/y"])
def test_a_root_that_is_no_place_is_refused(root: str) -> None:
    with pytest.raises(StoreError, match=r"expected a .*s3://bucket/prefix"):
        Objects(root)
