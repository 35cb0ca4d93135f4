"""A study from the command line: every arm trained once, one table, and a second time nothing to do."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.objects import Artifact
from prefect.testing.utilities import prefect_test_harness

from flows.cli import main
from tests.conftest import ModelFactory
from tests.flows.conftest import Bench, Cli, write_bench

pytestmark = pytest.mark.slow

STUDY = "study.yaml"


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Bench:
    """A study of a recipe with two sources, after its first run."""
    bench = write_bench(tmp_path_factory.mktemp("compare") / "bench", tiny_llama(), tiny_neox(seed=1))
    recipe = yaml.safe_load(bench.recipe.read_text())
    recipe["sources"].append({"name": "twin", "model": {"kind": "local", "path": str(tiny_llama(seed=5))}})
    bench.recipe.write_text(yaml.safe_dump(recipe))
    study = {
        "name": "bench study",
        "recipe": bench.recipe.name,
        "seeds": [0, 1],
        "fixed": False,
        "variants": [
            {"name": "fused", "seeds": 1},
            {"name": "CLM only", "teacher": "none"},
            {"name": "shuffled", "question": "Controls", "teacher": "shuffled", "seeds": 1},
        ],
        "mergings": [{"name": "merged", "models": ["fused", "twin"], "strategy": {"kind": "linear"}}],
    }
    (bench.folder / STUDY).write_text(yaml.safe_dump(study))
    assert main(["compare", str(bench.folder / STUDY), "--root", str(bench.root), "--device", "cpu"]) == 0
    return bench


def compared(cli: Cli, bench: Bench, *words: str) -> list[dict[str, object]]:
    """The JSON lines that a comparison prints."""
    shown = cli("compare", bench.folder / STUDY, "--root", bench.root, "--device", "cpu", "--json", *words)
    assert shown.code == 0, shown.err
    return [json.loads(line) for line in shown.out.splitlines()]


def test_again_everything_is_cached_and_the_table_has_every_arm(cli: Cli, done: Bench) -> None:
    lines = compared(cli, done)
    finished = next(line for line in lines if line["event"] == "finished")
    assert finished["computed"] == 0
    table = next(line for line in lines if line["event"] == "comparison")
    arms = {arm["name"]: arm for arm in table["arms"]}  # type: ignore[index, attr-defined]
    assert list(arms) == [
        "teacher", "twin", "sources together, equal weights", "sources together, earned weights",
        "student", "fused", "CLM only", "shuffled", "merged",
    ]  # fmt: skip
    assert (arms["fused"]["seeds"], arms["CLM only"]["seeds"], arms["merged"]["seeds"]) == ([0], [0, 1], [0])
    assert arms["fused"]["training"]["same_batches"] is arms["shuffled"]["training"]["same_batches"] is True
    assert len(set(arms["CLM only"]["training"]["batches_sha256"])) == 2
    assert arms["fused"]["against_rival"]["seeds"] == [0]
    page = next(line["path"] for line in lines if line["event"] == "result")
    assert Path(str(page)).read_text().startswith("<!doctype html>")


def test_the_terminal_shows_questions_arms_and_the_verdict(cli: Cli, done: Bench) -> None:
    shown = cli("report", "bench study", "--root", done.root)
    assert shown.code == 0
    for said in ("Sources read as one", "Controls", "merged", "against CLM only", "fused needs"):
        assert said in shown.out


def test_a_part_of_the_study_has_a_table_of_its_own_and_computes_nothing_else(cli: Cli, done: Bench) -> None:
    lines = compared(cli, done, "--only", "shuffled", "--seeds", "1")
    table = next(line for line in lines if line["event"] == "comparison")
    names = [arm["name"] for arm in table["arms"] if arm["kind"] != "read"]  # type: ignore[index, attr-defined]
    assert names == ["CLM only", "shuffled"]
    assert next(line for line in lines if line["event"] == "finished")["computed"] == 1  # the table


def test_a_plan_counts_what_a_variant_costs(cli: Cli, done: Bench) -> None:
    shown = cli("plan", done.folder / STUDY, "--root", done.root, "--json", "--set", "training.lm_weight=0.25")
    steps = {row["step"]: row for row in json.loads(shown.out)["steps"]}
    assert steps["extract"]["to_compute"] == steps["align"]["to_compute"] == 0
    assert steps["train"]["to_compute"] == 2  # language modelling alone has no such weight
    assert steps["merge"]["to_compute"] == 1


def test_an_unknown_arm_is_refused_by_name(cli: Cli, done: Bench) -> None:
    shown = cli("compare", done.folder / STUDY, "--root", done.root, "--only", "shufled")
    assert shown.code == 2
    assert "found 'shufled'" in shown.err


def test_an_arm_that_fails_is_missing_in_the_table_and_named(cli: Cli, done: Bench) -> None:
    study = yaml.safe_load((done.folder / STUDY).read_text())
    study |= {"name": "one diverges", "mergings": []}
    study["variants"].append({"name": "diverges", "changes": ["training.learning_rate=1e30"], "seeds": 1})
    (done.folder / "diverging.yaml").write_text(yaml.safe_dump(study))
    shown = cli("compare", done.folder / "diverging.yaml", "--root", done.root, "--device", "cpu")
    assert shown.code == 1
    assert re.search(r"error: 1 failed \(diverges, seed 0\).* the table without them is tabulate/\w+", shown.err)
    assert "fused needs" in shown.out
    assert "diverges" not in shown.out
    artifacts = {artifact.key: artifact for artifact in artifacts_of("one-diverges")}
    assert "| fused |" in str(artifacts["one-diverges-comparison"].data).replace("**", "")
    arms = {row["arm"]: row for row in json.loads(str(artifacts["one-diverges-arms"].data))}
    assert arms["fused, seed 0"] == {"arm": "fused, seed 0", "model": "cached", "evaluation": "cached"}
    assert arms["diverges, seed 0"]["model"].startswith("failed: ")


def artifacts_of(slug: str) -> list[Artifact]:
    """The artifacts in Prefect's UI whose keys begin so."""
    with get_client(sync_client=True) as client:
        return [a for a in client.read_artifacts() if (a.key or "").startswith(f"{slug}-")]
