"""Finished parts of an artifact to be: found when whole, ignored when not."""

from pathlib import Path

import pytest

from tasks.storage.partial import MARK, Parts
from tasks.storage.store import Store

ADDRESS = "extract/" + "a" * 32


def _write(text: str, folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "rows").write_text(text)


def test_a_part_is_found_by_its_name_alone(store: Store) -> None:
    parts = Parts(store, ADDRESS)
    parts.save("1", lambda folder: _write("one", folder))
    parts.save("10", lambda folder: _write("ten", folder))
    found = parts.find("1")
    assert found is not None
    assert (found / "deep" / "rows").read_text() == "one"
    assert parts.find("2") is None
    assert Parts(store, ADDRESS.replace("a", "b")).find("1") is None


def test_a_part_without_its_mark_or_with_a_changed_file_is_none(store: Store) -> None:
    parts = Parts(store, ADDRESS)
    for part in ("0", "1"):
        parts.save(part, lambda folder: _write("rows", folder))
    unmarked, changed = store.names(f"{ADDRESS}/partial")
    store.remove(f"{ADDRESS}/partial/{unmarked}/{MARK}")
    store.write(f"{ADDRESS}/partial/{changed}/deep/rows", b"torn")
    assert parts.find("0") is None
    assert parts.find("1") is None
    parts.save("1", lambda folder: _write("again", folder))
    found = parts.find("1")
    assert found is not None
    assert (found / "deep" / "rows").read_text() == "again"


def test_removing_and_failing_leave_nothing(store: Store) -> None:
    parts = Parts(store, ADDRESS)
    parts.save("0", lambda folder: _write("rows", folder))
    parts.remove()

    def fail(folder: Path) -> None:
        _write("half", folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        parts.save("1", fail)
    assert store.listing() == {}
