"""Evaluate on code problems: the share of them whose tests a model's programs pass, each run in the sandbox.

Nothing runs unless the problems say `run_untrusted_code`: what a model writes has been read by nobody. What the
sandbox holds, and what it doesn't, is in `tasks.evaluation.sandbox`.
"""

import json
import math
from pathlib import Path

import fsspec
import torch
from pydantic import ValidationError

from fusion_core.spec import Spec
from tasks.artifacts import ModelRef, Runtime, TaskScoresRef
from tasks.corpora.documents import text_id
from tasks.engines import Dtype, pick_device, tokens_per_batch
from tasks.evaluation.benchmarks import CodeProblems
from tasks.evaluation.sandbox import run_confined
from tasks.evaluation.task_scores import TaskScore, TaskScores, write_scores_file
from tasks.models.folders import (
    context_window,
    encode_documents,
    load_config,
    load_model,
    load_tokenizer,
    vocabulary_of,
)
from tasks.models.generation import continue_greedily
from tasks.step import Output, step
from tasks.storage.store import open_store

PASS = "pass@1"
_STOPS = ("\ndef ", "\nclass ", "\nif ", "\nprint", "\n#", "\n@", "\nimport ", "\nfrom ", "\n```")
"""What begins the next thing after a function's body; a completion ends before the first of them."""


class Problem(Spec):
    """A line of the file: `test` defines `check`, which takes the function named `entry_point`."""

    task_id: str
    prompt: str
    test: str
    entry_point: str
    canonical_solution: str = ""


def _pin_problems(model: ModelRef, problems: CodeProblems, dtype: Dtype, *, runtime: Runtime) -> dict[str, object]:
    if not problems.run_untrusted_code:
        raise ValueError(
            f"tasks {problems.name}: scoring it runs programs that the model writes on this machine, in a sandbox that "
            "shares its kernel; set run_untrusted_code: true for this task where you accept that"
        )
    return {"content": text_id(_read(problems.file))}


@step(version=1, on_device=True, pin=_pin_problems)
def evaluate_code(
    model: ModelRef, problems: CodeProblems, dtype: Dtype = "float32", *, runtime: Runtime, out: Output
) -> TaskScoresRef:
    """pass@1 of greedy completions (`scores.json`), which problems were solved, and the programs (`programs.json`)."""
    folder = open_store(runtime).fetch(model)
    text = _read(problems.file)
    if out.pins["content"] != text_id(text):
        raise OSError(f"tasks {problems.file}: it changed since the run began; run again")
    asked = read_problems(text, problems.file)[: problems.limit]
    bodies = _complete(folder, asked, problems.max_tokens, dtype, runtime, out)
    programs = [f"{p.prompt}{body}\n{p.test}\ncheck({p.entry_point})\n" for p, body in zip(asked, bodies, strict=True)]
    outcomes = []
    for number, program in enumerate(programs):
        outcomes.append(run_confined(program, seconds=problems.seconds).verdict)
        out.progress(number + 1, len(programs), "programs")
    count, solved = len(outcomes), outcomes.count("passed")
    share = solved / count
    stderr = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
    score = TaskScore(task=problems.name, metric=PASS, value=share, stderr=stderr, questions=count)
    questions: dict[str, list[object]] = {
        "question": [p.task_id for p in asked],
        PASS: [float(outcome == "passed") for outcome in outcomes],
    }
    write_scores_file(out.dir, TaskScores(name=problems.name, scores=(score,)), {problems.name: questions})
    (out.dir / "programs.json").write_text(json.dumps(programs), encoding="utf-8")
    out.facts |= {
        "scores": [score.model_dump(mode="json")],
        "questions": count,
        "stopped": outcomes.count("stopped"),
    }
    return out.ref(TaskScoresRef)


def read_problems(text: str, name: str) -> list[Problem]:
    """The problems in JSON lines. Raises `ValueError` with the line of one that isn't a problem, or without any."""
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                problems.append(Problem.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the line"
                raise ValueError(
                    f"tasks {name}, line {number}: expected a problem (task_id, prompt, test, entry_point), found "
                    f"{where}: {first['msg'].lower()}"
                ) from None
    if not problems:
        raise ValueError(f"tasks {name}: expected at least one problem, found an empty file")
    return problems


def cut_completion(text: str) -> str:
    """The text up to where the next definition or statement at the margin begins."""
    places = [place for stop in _STOPS if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _complete(
    folder: Path, asked: list[Problem], max_tokens: int, dtype: Dtype, runtime: Runtime, out: Output
) -> list[str]:
    tokenizer = load_tokenizer(folder)
    vocabulary, window = vocabulary_of(tokenizer), context_window(load_config(folder))
    network = load_model(folder, dtype, pick_device(runtime.device))
    tokens = encode_documents(tokenizer, vocabulary, [p.prompt for p in asked], [False] * len(asked))
    prompts = list(torch.tensor_split(tokens.ids, tokens.doc_offsets[1:-1]))
    longest = max(map(len, prompts))
    if window is not None and longest + max_tokens > window:
        raise ValueError(
            f"tasks: expected prompts and completions of at most {window} tokens, the model's window, found prompts of "
            f"up to {longest} and {max_tokens} to write; set max_tokens to {max(window - longest, 0)} or less"
        )
    batch = tokens_per_batch(runtime.batch_tokens, network.device)
    written = continue_greedily(network, vocabulary, prompts, max_tokens, batch_tokens=batch, progress=out.progress)
    return [cut_completion(found.text) for found in written]


def _read(place: str) -> str:
    try:
        with fsspec.open(place, "r", encoding="utf-8") as stream:
            return str(stream.read())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"tasks {place}: expected a readable file of JSON lines, found {type(error).__name__}"
        ) from None
