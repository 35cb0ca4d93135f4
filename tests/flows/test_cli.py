"""The command line where nothing is computed: starting, planning, writing recipes, and refusing bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli.launch import runtime_of
from flows.recipe import load_recipe
from flows.recipe_files import RecipeError
from tasks.models.folders import HubModel
from tests.conftest import ModelFactory
from tests.flows.conftest import Bench, Cli

COMMANDS = (
    "run",
    "compare",
    "plan",
    "inspect",
    "demo",
    "init",
    "report",
    "publish",
    "lineage",
    "pull",
    "verify",
    "gc",
    "evaluate",
    "refresh",
    "up",
    "deploy",
)


def test_help_names_every_command(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    assert all(f"  {command} " in shown.out for command in COMMANDS)


def test_the_command_line_starts_without_heavy_packages() -> None:
    heavy = ("torch", "prefect", "transformers", "datasets", "matplotlib", "fsspec")
    code = f"import flows.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_planning_starts_without_what_only_computing_needs() -> None:
    heavy = ("transformers", "datasets", "matplotlib", "pandas")
    code = f"import flows.plan, flows.forecast, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_takes_half_a_second_of_one_core() -> None:
    code = "import resource, sys; from flows.cli import main; main(['--help']); u = resource.getrusage(0); "
    code += "print(u.ru_utime + u.ru_stime, file=sys.stderr)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr)
        for _ in range(3)
    ]
    assert min(seconds) < 0.5


# ---- planning ------------------------------------------------------------------------------------------------


def test_a_plan_counts_steps_and_says_what_it_cannot_know(cli: Cli, bench: Bench) -> None:
    shown = cli("plan", bench.recipe, "--root", bench.root)
    assert shown.code == 0
    assert "shards of corpus: known once the corpus is built" in shown.out
    assert "shards of corpus held-out: known once the corpus is built" in shown.out
    assert "to write" in shown.out
    assert not bench.root.exists()


def test_a_plan_for_machines_is_one_json_object(cli: Cli, bench: Bench) -> None:
    plan = json.loads(cli("plan", bench.recipe, "--root", bench.root, "--json").out)
    steps = {row["step"]: (row["cached"], row["to_compute"]) for row in plan["steps"]}
    assert steps == {"download": (0, 2), "build_corpus": (0, 2), "map_vocab": (0, 1), "train": (0, 2)} | {
        "evaluate": (0, 4),
        "probe": (0, 3),
        "gate": (0, 1),
        "report": (0, 1),
    }
    assert plan["unbuilt"] == ["corpus", "corpus held-out"]
    assert {entry["label"] for entry in plan["missing"]} >= {"download student", "download teacher", "corpus"}
    assert plan["expected_bytes"] > 2 * sum(p.stat().st_size for p in _model(bench, "target").glob("*.safetensors"))


def test_overrides_change_the_plan(cli: Cli, bench: Bench) -> None:
    words = ("plan", bench.recipe, "--root", bench.root, "--json")
    plans = [json.loads(cli(*words, *more).out) for more in ((), ("--set", "training.seed=1"))]
    fused = [next(e["ref"] for e in plan["missing"] if e["label"] == "train student fused") for plan in plans]
    assert fused[0] != fused[1]


def test_the_root_comes_from_the_environment_unless_it_is_named(
    cli: Cli, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_FUSE_ROOT", str(bench.folder / "elsewhere"))
    assert f"in {bench.folder / 'elsewhere'} " in cli("lineage", "abcdef").err
    assert f"in {bench.root} " in cli("lineage", "abcdef", "--root", bench.root).err


# ---- bad input: one line, exit code 2, nothing written ---------------------------------------------------------

Harm = Callable[[Bench], list[str]]


def _set(*overrides: str) -> Harm:
    return lambda bench: [word for override in overrides for word in ("--set", override)]


def _model(bench: Bench, name: str) -> Path:
    recipe = load_recipe(str(bench.recipe))
    named = recipe.target if name == "target" else recipe.sources[0]
    return Path(named.model.path)  # type: ignore[union-attr]


def _copy_of_source(bench: Bench) -> Path:
    return Path(shutil.copytree(_model(bench, "source"), bench.folder / "copy"))


def _without_tokenizer(bench: Bench) -> list[str]:
    model = _copy_of_source(bench)
    for path in model.glob("*token*"):
        path.unlink()
    return ["--set", f"sources.0.model.path={model}"]


def _pickle_only(bench: Bench) -> list[str]:
    model = _copy_of_source(bench)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return ["--set", f"sources.0.model.path={model}"]


def _without_config(bench: Bench) -> list[str]:
    model = _copy_of_source(bench)
    (model / "config.json").unlink()
    return ["--set", f"sources.0.model.path={model}"]


HUGE = (
    "target.model={kind: scratch, architecture: {kind: llama, hidden_size: 1048576, layers: 512, heads: 8}, "
    "tokenizer: {kind: byte_level_bpe}, corpus: {documents: [{kind: files, paths: [PATHS]}]}, training: {lm_weight: 1}}"
)


def _no_space(bench: Bench) -> list[str]:
    return ["--set", HUGE.replace("PATHS", f"'{bench.texts}/learn-*.txt'")]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(_set("training.lm_weigth=0.5"), r"training\.lm_weigth: unknown key", id="unknown key"),
        pytest.param(_set("fusion.kind=vote"), r"fusion\.kind: expected one of .*found 'vote'", id="unknown strategy"),
        pytest.param(_set("training.lm_weight=2"), r"training\.lm_weight: .*equal to 1, found 2", id="lm_weight"),
        pytest.param(_set("sources=[]"), r"sources: expected at least 1, found 0", id="no sources"),
        pytest.param(_set("sources.0.model.path=/no/model"), r"model /no/model: expected a folder", id="no folder"),
        pytest.param(_without_tokenizer, r"copy: expected a tokenizer .*found none", id="no tokenizer"),
        pytest.param(_without_config, r"copy: expected a config\.json", id="no config"),
        pytest.param(_pickle_only, r"copy: expected safetensors weights, found only pickles", id="pickles only"),
        pytest.param(_set("corpus.documents.0.paths=[/no/*.txt]"), r"files at '/no/\*\.txt', found none", id="no text"),
        pytest.param(_no_space, r"store .*: the run needs about [\d.]+ GB, [\d.]+ GB are free", id="no space"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(cli: Cli, bench: Bench, harm: Harm, message: str) -> None:
    failed = cli("run", bench.recipe, "--root", bench.root, *harm(bench))
    assert failed.code == 2
    assert failed.out == ""
    lines = failed.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0])
    assert not bench.root.exists() or list(bench.root.iterdir()) == []


def test_a_store_below_a_file_is_refused(cli: Cli, bench: Bench) -> None:
    failed = cli("run", bench.recipe, "--root", bench.recipe / "store")
    assert failed.code == 2
    assert failed.err.startswith("error: ")
    assert "store" in failed.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_refused(cli: Cli, bench: Bench) -> None:
    bench.root.mkdir()
    bench.root.chmod(0o500)
    failed = cli("run", bench.recipe, "--root", bench.root)
    assert failed.code == 2
    assert "expected a place that can be written and read" in failed.err


def test_an_unknown_kind_of_store_is_refused(cli: Cli, bench: Bench) -> None:
    failed = cli("run", bench.recipe, "--root", "nowhere://bucket/x")
    assert failed.code == 2
    assert "nowhere" in failed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "Missing argument"),
        (("fuse", "x"), "No such command"),
        (("run", "quickstart", "--wrong"), "No such option"),
        (("run", "nothing.yaml"), "expected a YAML file or one of"),
        (("init", "gpt2"), "--target"),
        (("init", "owner/a/b", "--target", "gpt2"), "expected a repository"),
        (("lineage", "abcdef"), "expected step/fingerprint"),
        (("report",), "expected a kept run, found none"),
        (("refresh", "quickstart", "nonsense"), "expected a step or a label of this recipe, found 'nonsense'"),
        (("evaluate", "/no/model", "--corpus", "RECIPE"), "model /no/model: expected a folder"),
    ],
)
def test_wrong_words_are_refused(cli: Cli, bench: Bench, words: tuple[str, ...], message: str) -> None:
    root = () if words[0] in ("init", "fuse") or (len(words) == 1 and words[0] == "run") else ("--root", bench.root)
    failed = cli(*(bench.recipe if word == "RECIPE" else word for word in words), *root)
    assert failed.code == 2
    assert failed.err.startswith("error: ")
    assert message in failed.err
    assert len(failed.err.splitlines()) == 1
    assert not bench.root.exists()


def test_a_process_of_its_own_ends_with_one_line_and_the_code(bench: Bench) -> None:
    words = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())"]
    done = subprocess.run([*words, "plan", "absent.yaml"], cwd=bench.folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe 'absent.yaml': expected a YAML file")
    assert len(done.stderr.splitlines()) == 1


def test_verbose_shows_where_an_error_comes_from(cli: Cli, bench: Bench) -> None:
    failed = cli("--verbose", "plan", bench.folder / "absent.yaml")
    assert failed.code == 2
    assert "Traceback" in failed.err


# ---- init ----------------------------------------------------------------------------------------------------


def test_init_writes_a_commented_recipe_that_loads(cli: Cli, tmp_path: Path, tiny_neox: ModelFactory) -> None:
    folder = tiny_neox()
    output = tmp_path / "mine.yaml"
    models = ("Qwen/Qwen3-8B-Base@main", str(folder), "other/Qwen3-8B-Base")
    assert cli("init", *models, "--target", "meta-llama/Llama-3.1-8B", "-o", output).code == 0
    recipe = load_recipe(str(output))
    assert recipe.target.model == HubModel(id="meta-llama/Llama-3.1-8B", revision="main")
    assert [source.model.kind for source in recipe.sources] == ["hub", "local", "hub"]
    assert len({source.name for source in recipe.sources}) == 3
    assert sum("#" in line for line in output.read_text().splitlines()) >= 10


def test_init_prints_to_stdout_and_never_overwrites(cli: Cli, tmp_path: Path) -> None:
    output = tmp_path / "mine.yaml"
    output.write_text("precious")
    assert cli("init", "gpt2", "--target", "distilgpt2", "-o", output).code == 2
    assert output.read_text() == "precious"
    shown = cli("init", "gpt2", "--target", "distilgpt2", "--text", "a.jsonl", "--held-out", "b: c/*.parquet")
    output.write_text(shown.out)
    recipe = load_recipe(str(output))
    assert [source.format for source in recipe.corpus.documents] == ["jsonl"]  # type: ignore[union-attr]
    assert recipe.evaluation is not None
    assert recipe.evaluation.corpus.documents[0].paths == ("b: c/*.parquet",)  # type: ignore[union-attr]


def test_how_a_run_computes_is_set_field_by_field(tmp_path: Path) -> None:
    runtime = runtime_of(str(tmp_path), None, 3, ["training.micro_batch=8", "lease_seconds=5"])
    assert (runtime.max_workers, runtime.training.micro_batch, runtime.lease_seconds) == (3, 8, 5.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.micro_batches=8", "--runtime training.micro_batches: unknown key"),
        ("training.micro_batch=0", "--runtime training.micro_batch: .*greater than 0.*found 0"),
        ("training", "--runtime training: expected key.path=value, found no '='"),
        ("device.index=1", "--runtime device.index: expected fields to set"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        runtime_of(str(tmp_path), "cpu", None, [setting])
