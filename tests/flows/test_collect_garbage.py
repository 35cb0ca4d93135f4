"""`llm-fuse gc` with its rules: a dry run that tells bytes, then the same for good."""

import json
from pathlib import Path

from tasks.artifacts import Runtime
from tasks.library.lineage import Library, runs
from tasks.storage.store import open_store
from tests.flows.conftest import Cli
from tests.tasks.library.test_retention import note


def test_a_dry_run_tells_what_goes_and_the_real_one_removes_just_that(cli: Cli, tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path))
    note(runtime, "old", 100)
    note(runtime, "paper", 100, name="paper-7b")
    note(runtime, "new", 1)
    words = ("gc", "--min-age", 0, "--keep-days", 30, "--keep", "paper-*", "--root", runtime.root)
    told = json.loads(cli(*words, "--json").out)
    assert [item["kind"] for item in told["items"]] == ["run", "artifact"]
    before = {path: entry.bytes for path, entry in open_store(runtime).listing().items()}
    assert len(runs(open_store(runtime))) == 3
    assert "2 things" in cli(*words).out
    removed = json.loads(cli(*words, "--delete", "--json").out)
    assert removed["items"] == told["items"]
    after = open_store(runtime).listing()
    assert sum(item["bytes"] for item in told["items"]) == sum(
        size for path, size in before.items() if path not in after and not path.startswith("runs/")
    )
    assert list(runs(open_store(runtime))) == ["paper", "new"]
    assert Library.load(open_store(runtime)).verify() == []
    assert cli(*words).out.strip() == "nothing to remove"


def test_a_run_is_forgotten_by_its_name(cli: Cli, tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path))
    note(runtime, "a", 1, name="mistake")
    note(runtime, "b", 1, name="good")
    called = cli("gc", "--min-age", 0, "--forget", "mistake", "--delete", "--root", runtime.root)
    assert called.code == 0, called.err
    assert list(runs(open_store(runtime))) == ["b"]
    assert len(Library.load(open_store(runtime)).manifests) == 1
