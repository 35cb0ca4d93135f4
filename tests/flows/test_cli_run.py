"""The command line computing: a run, the same run again, and everything that can be asked afterwards."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from flows.cli import main
from tasks.artifacts import Runtime
from tasks.library.garbage import find_garbage
from tasks.library.lineage import Library, RunRecord, record_run
from tasks.storage.store import MANIFEST, open_store
from tests.conftest import ModelFactory
from tests.flows.conftest import Bench, Cli, write_bench


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Bench:
    """A bench whose recipe has been run."""
    bench = write_bench(tmp_path_factory.mktemp("done") / "bench", tiny_llama(), tiny_neox(seed=1))
    assert main(["run", str(bench.recipe), "--root", str(bench.root), "--device", "cpu"]) == 0
    return bench


@pytest.fixture
def copy(done: Bench, tmp_path: Path) -> Bench:
    """The same recipe with a store of its own, to be harmed."""
    shutil.copytree(done.root, tmp_path / "store")
    shutil.copy(done.recipe, tmp_path / "recipe.yaml")
    return Bench(tmp_path)


JUDGED = {"evaluate", "probe", "gate", "report"}
"""What measures a model that was trained anew."""


def plan_of(cli: Cli, bench: Bench, *words: str) -> dict[str, tuple[int, int]]:
    """(cached, to compute) per step."""
    shown = cli("plan", bench.recipe, "--root", bench.root, "--json", *words)
    return {row["step"]: (row["cached"], row["to_compute"]) for row in json.loads(shown.out)["steps"]}


def missing(cli: Cli, bench: Bench, *words: str) -> set[str]:
    """Labels of what a run would compute."""
    shown = cli("plan", bench.recipe, "--root", bench.root, "--json", *words)
    return {entry["label"] for entry in json.loads(shown.out)["missing"]}


def leftovers(bench: Bench) -> list[str]:
    """Whatever lies in the store and belongs to no artifact."""
    library = Library.load(open_store(Runtime(root=str(bench.root))))
    keep = [manifest.ref for manifest in library.manifests.values()]
    return [item.path for item in find_garbage(library, keep, min_age=0.0)]


def test_after_a_run_everything_is_cached(cli: Cli, done: Bench) -> None:
    assert missing(cli, done) == set()
    assert leftovers(done) == []


def test_the_same_run_again_computes_nothing_and_shows_the_same(cli: Cli, copy: Bench) -> None:
    again = cli("run", copy.recipe, "--root", copy.root)
    assert again.code == 0
    assert re.search(r"^\d+ cached, 0 computed in [\d.]+ s$", again.err, re.MULTILINE)
    report = cli("report", "--root", copy.root)
    assert report.out == again.out


def test_a_later_run_without_a_report_does_not_hide_the_last_one(cli: Cli, copy: Bench) -> None:
    record = RunRecord(name="bench: teacher", started_at="2999-01-01T00:00:00", recipe={}, refs=[])
    record_run(open_store(Runtime(root=str(copy.root))), record, run_id="later")
    assert cli("report", "--root", copy.root).code == 0
    assert "expected a run that evaluates" in cli("report", "later", "--root", copy.root).err


def test_the_table_has_a_row_per_model_and_the_places(cli: Cli, done: Bench) -> None:
    shown = cli("report", "bench", "--root", done.root).out
    rows = [line.split("  ")[0] for line in shown.splitlines()]
    assert rows[0] == "bits per byte"
    assert rows[1:5] == ["teacher", "student", "CLM only", "fused"]
    assert "fused against" in rows
    page = next(line.split()[1] for line in shown.splitlines() if line.startswith("report"))
    assert Path(page).read_text().startswith("<!doctype html>")
    model = next(line.split()[1] for line in shown.splitlines() if line.startswith("model"))
    assert (Path(model) / "config.json").is_file()


def test_json_lines_are_all_that_stdout_gets(cli: Cli, copy: Bench) -> None:
    shown = cli("run", copy.recipe, "--root", copy.root, "--json")
    events = [json.loads(line) for line in shown.out.splitlines()]
    assert {event["event"] for event in events} == {"cached", "finished", "comparison", "result"}
    comparison = next(event for event in events if event["event"] == "comparison")
    assert [standing["name"] for standing in comparison["standings"]] == ["teacher", "student", "CLM only", "fused"]
    assert shown.err == ""


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("fusion.kind=avg_ce", {"fuse", "train", *JUDGED}),
        ("training.lm_weight=0.8", {"train", *JUDGED}),
        ("name=other", {"report"}),
        ("vocab_mapping.kind=canonical", {"map_vocab", "align", "fuse", "train", *JUDGED}),
        (
            "vocab_mapping.kind=statistics",
            {"count_pairs", "map_vocab", "align", "fuse", "train", *JUDGED},
        ),
    ],
)
def test_after_a_change_only_what_follows_is_to_compute(cli: Cli, done: Bench, override: str, steps: set[str]) -> None:
    plan = plan_of(cli, done, "--set", override)
    assert {step for step, (_, to_compute) in plan.items() if to_compute} == steps
    assert plan["train"] == ((1, 1) if "train" in steps else (2, 0))  # the baseline learns from no teacher


def test_a_mapping_that_needs_counts_gets_one_per_shard_and_is_cached_like_any(cli: Cli, copy: Bench) -> None:
    words = ("--set", "vocab_mapping.kind=co_occurrence")
    counted = {label for label in missing(cli, copy, *words) if label.startswith("count")}
    assert counted == {"count teacher 001/002", "count teacher 002/002"}
    assert cli("run", copy.recipe, "--root", copy.root, *words).code == 0
    for more in ((), ("--set", "min_shards=0.5")):  # where shards may fail, the flow waits for the counts
        again = cli("run", copy.recipe, "--root", copy.root, *words, *more)
        assert re.search(r"^\d+ cached, [01] computed", again.err, re.MULTILINE)  # the report tells the whole recipe


def test_a_deleted_shard_alone_is_computed_again_with_the_same_bytes(cli: Cli, copy: Bench) -> None:
    folder = next(f for f in sorted((copy.root / "align").iterdir()))
    before = _content(folder)
    shutil.rmtree(folder)
    assert len(missing(cli, copy)) == 1
    again = cli("run", copy.recipe, "--root", copy.root)
    assert again.code == 0
    assert [line.split(" 0")[0] for line in again.err.splitlines()[:-1]] == ["computed align teacher"]
    assert _content(folder) == before


def test_refresh_computes_again_what_it_names_and_nothing_else(cli: Cli, copy: Bench) -> None:
    words = ("refresh", copy.recipe, "extract teacher 001/002", "--root", copy.root)
    named = cli(*words, "--dry-run")
    assert re.fullmatch(r"recompute extract teacher 001/002 \(extract/[0-9a-f]{32}\)\n", named.err)
    assert missing(cli, copy) == set()
    done = cli(*words)
    assert done.code == 0
    assert re.search(r"^computed extract teacher 001/002 [\d.]+ s$", done.err, re.MULTILINE)
    assert re.search(r"^\d+ cached, 1 computed in", done.err, re.MULTILINE)


def test_lineage_leads_back_to_text_and_models_and_forward_to_the_report(cli: Cli, done: Bench) -> None:
    folder = sorted((done.root / "align").iterdir())[0]
    shown = cli("lineage", folder, "--root", done.root)
    assert shown.code == 0
    back, forward = shown.out.split("used by")
    for label in ("align teacher", "extract student", "extract teacher", "map vocabulary teacher", "download teacher"):
        assert label in back
    assert "corpus" in back
    assert "train student fused" in forward
    assert "report" in forward
    machine = json.loads(cli("lineage", folder.name[:12], "--root", done.root, "--json").out)
    assert machine["ref"] == f"align/{folder.name}"
    assert {address.split("/")[0] for address in machine["ancestors"]} == {
        *("extract", "map_vocab", "download", "build_corpus"),
    }
    assert "report" in {address.split("/")[0] for address in machine["descendants"]}


def test_verify_names_a_damaged_file_and_ends_with_one(cli: Cli, copy: Bench) -> None:
    whole = cli("verify", "--root", copy.root)
    assert whole.code == 0
    assert re.fullmatch(r"artifacts checked: \d+, problems: 0\n", whole.out)
    file = next((copy.root / "fuse").rglob("*.safetensors"))
    _flip(file)
    found = cli("verify", "--root", copy.root)
    assert found.code == 1
    assert re.search(r"^fuse/[0-9a-f]{32}/fused\.safetensors: expected sha256", found.out, re.MULTILINE)
    assert found.out.endswith(", problems: 1\n")


def test_garbage_is_named_first_and_removed_on_demand_only(cli: Cli, copy: Bench) -> None:
    extra = cli("evaluate", copy.recipe.parent / "nothing", "--root", copy.root)
    assert extra.code == 2
    attempt = copy.root / "extract" / ("0" * 32) / "attempt"
    attempt.mkdir(parents=True)
    (attempt / "half.safetensors").write_bytes(b"x" * 1000)
    assert cli("gc", "--root", copy.root).out == "nothing to remove\n"  # it is young
    named = cli("gc", "--root", copy.root, "--min-age", "0")
    assert "attempt" in named.out
    assert "1.0 kB may go" in named.out
    assert attempt.exists()
    assert cli("gc", "--root", copy.root, "--min-age", "0", "--delete").code == 0
    assert not attempt.exists()
    assert missing(cli, copy) == set()


def test_models_of_the_store_are_measured_against_others(cli: Cli, copy: Bench, done: Bench) -> None:
    model = next(line.split()[1] for line in cli("report", "--root", copy.root).out.splitlines() if line[:5] == "model")
    address = "/".join(Path(model).parts[-3:-1])
    source = next(f for f in (copy.root / "download").iterdir())
    shown = cli("evaluate", address, f"download/{source.name}", "--corpus", copy.recipe, "--root", copy.root)
    assert shown.code == 0
    assert "against" in shown.out
    assert "calibration error" in shown.out
    alone = cli("evaluate", address, "--corpus", f"{done.texts}/learn-*.txt", "--root", copy.root)
    assert alone.code == 0
    assert "against" not in alone.out


def test_code_problems_are_scored_only_where_their_risk_was_accepted(cli: Cli, copy: Bench, tmp_path: Path) -> None:
    problem = {"task_id": "t", "prompt": "X = 0  # ", "test": "def check(f):\n    pass", "entry_point": "X"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem))
    model = next(f for f in (copy.root / "train").iterdir())
    command = ["evaluate", f"train/{model.name}", "--corpus", copy.recipe, "--root", copy.root]
    refused = cli(*command, "--tasks", tmp_path / "problems.jsonl")
    assert refused.code == 2
    assert "run_untrusted_code: true" in refused.err


SLEEPER = """
import time
from prefect import flow, task
from flows.cli.launch import launch
from tasks.artifacts import Runtime

@task
def sleep():
    print("asleep", flush=True)
    time.sleep(600)

@flow
def sleepy(runtime):
    sleep.submit().result()

launch(sleepy, runtime=Runtime())
"""


def test_ctrl_c_ends_a_run_in_seconds_whatever_its_tasks_do() -> None:
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    words = [sys.executable, "-c", SLEEPER]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; the same command goes on where it stopped"


# ---- bad input that only computing finds -----------------------------------------------------------------------

Harm = Callable[[Bench], list[str]]


def _few_rows(bench: Bench) -> list[str]:
    return ["--set", f"sources.0.model.path={bench.folder / 'few-rows'}"]


def _text(content: bytes) -> Harm:
    def write(bench: Bench) -> list[str]:
        (bench.folder / "bad.txt").write_bytes(content)
        return ["--set", f"corpus.documents.0.paths=[{bench.folder / 'bad.txt'}]"]

    return write


def _newer_manifest(bench: Bench) -> list[str]:
    mark = next((bench.root / "extract").iterdir()) / MANIFEST
    mark.write_text(mark.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    return []


def _flipped_shard(bench: Bench) -> list[str]:
    _flip(next((bench.root / "align").rglob("*.safetensors")))
    return ["--set", "fusion.kind=avg_ce"]


def _flipped_input_of_an_input(bench: Bench) -> list[str]:
    marks = (bench.root / "extract").glob(f"*/{MANIFEST}")
    damaged = next(mark.parent for mark in marks if '"extract teacher 001' in mark.read_text())
    _flip(next(damaged.rglob("*.safetensors")))
    shutil.rmtree(bench.root / "align")
    return ["--set", "fusion.kind=avg_ce"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(_few_rows, r"few-rows: expected a tokenizer of at most 300 ids.*found 320", id="few rows"),
        pytest.param(_text(b""), r"bad\.txt: expected a document of two characters or more, found 0", id="empty"),
        pytest.param(_text(b"x"), r"bad\.txt: expected a document of two characters or more, found 1", id="one token"),
        pytest.param(_text(b"caf\xe9 au lait"), r"bad\.txt: expected UTF-8 text, found byte 0xe9", id="Latin-1"),
        pytest.param(_newer_manifest, r"extract/.*: .*schema 1 or older, found 99", id="newer"),
        pytest.param(_flipped_shard, r"1/2 shards failed: .*align/.*expected sha256", id="damaged"),
        pytest.param(_flipped_input_of_an_input, r"1/2 shards failed: .*extract/.*expected sha256", id="damaged input"),
    ],
)  # fmt: skip
def test_bad_input_found_on_the_way_ends_with_two(
    cli: Cli, copy: Bench, tiny_neox: ModelFactory, harm: Harm, message: str
) -> None:
    shutil.copytree(tiny_neox(vocab_size=300), copy.folder / "few-rows")
    failed = cli("run", copy.recipe, "--root", copy.root, *harm(copy))
    assert failed.code == 2
    assert failed.out == ""
    last = failed.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last)
    assert "Traceback" not in failed.err
    if harm is not _newer_manifest:  # with one of those there is no reading the store
        assert leftovers(copy) == []


def _content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file)
