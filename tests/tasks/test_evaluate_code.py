"""Code problems: nothing runs unasked, scores count programs that passed, bad files are told by line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts import ModelRef, Runtime
from tasks.download import download
from tasks.evaluate_code import cut_completion, evaluate_code, read_problems
from tasks.evaluation.benchmarks import CodeProblems
from tasks.evaluation.task_scores import read_scores_file
from tasks.models.folders import LocalModel
from tasks.storage.store import open_store

# The first is solved by whatever a model writes in its string; the others by nothing and by no model.
PROBLEMS = [
    {"task_id": "t/0", "prompt": "def f():\n    return 1\n\nX = 0  # ", "test": "def check(f):\n    assert f() == 1"},
    {"task_id": "t/1", "prompt": "def f():\n    return 2\n\nX = 0  # ", "test": "def check(f):\n    assert f() == 1"},
    {"task_id": "t/2", "prompt": "while True: pass\nX = 0  # ", "test": "def check(f):\n    pass"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(json.dumps({**p, "entry_point": "f"}) for p in PROBLEMS) + "\n")
    return path


@pytest.fixture
def model(tmp_path: Path, tiny_neox: Callable[..., Path]) -> tuple[ModelRef, Runtime]:
    runtime = Runtime(root=str(tmp_path / "store"), device="cpu")
    return download.fn(LocalModel(path=str(tiny_neox(seed=3))), runtime=runtime), runtime


def test_nothing_that_a_model_wrote_runs_unasked(model: tuple[ModelRef, Runtime], file: Path) -> None:
    ref, runtime = model
    with pytest.raises(
        ValueError, match=r"runs programs that the model writes on this machine.* run_untrusted_code: true"
    ):
        evaluate_code.fn(ref, CodeProblems(file=str(file)), runtime=runtime)


def test_the_score_is_the_share_of_programs_that_passed(model: tuple[ModelRef, Runtime], file: Path) -> None:
    ref, runtime = model
    problems = CodeProblems(name="own", file=str(file), max_tokens=1, seconds=1, run_untrusted_code=True)
    made = evaluate_code.fn(ref, problems, runtime=runtime)
    store = open_store(runtime)
    (score,) = read_scores_file(store.fetch(made)).scores
    assert (score.task, score.metric, score.questions) == ("own", "pass@1", 3)
    assert score.value == pytest.approx(1 / 3)
    questions = json.loads((store.fetch(made) / "questions.json").read_text())["own"]
    assert questions == {"question": ["t/0", "t/1", "t/2"], "pass@1": [1.0, 0.0, 0.0]}
    manifest = store.manifest(made)
    assert manifest is not None
    assert manifest.facts["stopped"] == 1


def test_a_completion_ends_where_the_next_thing_begins() -> None:
    assert cut_completion("    return 1\n\ndef g():\n    pass") == "    return 1\n"
    assert cut_completion("    if x:\n        return 1\n") == "    if x:\n        return 1\n"


def test_a_window_that_is_too_small_names_what_fits(model: tuple[ModelRef, Runtime], file: Path) -> None:
    ref, runtime = model
    problems = CodeProblems(file=str(file), max_tokens=1000, run_untrusted_code=True)
    with pytest.raises(ValueError, match=r"at most 256 tokens, .* set max_tokens to \d+ or less"):
        evaluate_code.fn(ref, problems, runtime=runtime)


def test_files_that_hold_no_problems_are_told_by_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: expected a problem .* found the line: invalid json"):
        read_problems(json.dumps({**PROBLEMS[0], "entry_point": "f"}) + "\n{", "p")
    with pytest.raises(ValueError, match=r"line 1: .* found entry_point: field required"):
        read_problems(json.dumps(PROBLEMS[0]), "p")
    with pytest.raises(ValueError, match="found an empty file"):
        read_problems("\n", "p")
    problems = CodeProblems(file=str(tmp_path / "none"), run_untrusted_code=True)
    with pytest.raises(ValueError, match="expected a readable file of JSON lines, found FileNotFoundError"):
        evaluate_code.fn(ModelRef(step="x", fingerprint="y"), problems, runtime=Runtime(root=str(tmp_path)))
