"""What models are measured by: held-out text, tasks, and for the fused one its smoke gate."""

from collections.abc import Mapping, Sequence

from flows.comparison import Comparison
from flows.corpora import build_shards
from tasks.artifacts import ModelRef, Runtime, ShardRef
from tasks.engines import Dtype
from tasks.evaluate import evaluate
from tasks.evaluate_code import evaluate_code
from tasks.evaluate_tasks import evaluate_tasks
from tasks.evaluation.benchmarks import CodeProblems, TaskChoice, expand_suites
from tasks.gate import gate
from tasks.probe import probe
from tasks.report import ReportRow, Role
from tasks.step import Future


def measure_models(
    models: Sequence[tuple[str, Role, Future]], evaluation: Comparison, runtime: Runtime
) -> list[ReportRow]:
    """The report's rows, by name and role, in order; the fused model's has the verdict on it."""
    shards = build_shards(evaluation.corpus, "corpus held-out", runtime)
    costs = [
        evaluate.submit(model, shards, evaluation.spec, runtime=runtime, label=f"evaluate {name}")
        for name, _, model in models
    ]
    asked = [ask_tasks(name, model, evaluation.tasks, evaluation.spec.dtype, runtime) for name, _, model in models]
    written = _have_written(models, shards, evaluation, runtime)
    verdict = _judge_fused(models, costs, written, evaluation, runtime)
    return [
        ReportRow(
            name=name,
            role=role,
            model=model.result(),
            evaluation=cost.result(),
            tasks=tuple(scores.result() for scores in answers),
            verdict=verdict.result() if verdict is not None and role == "fused" else None,
            probe=written[name].result() if name in written else None,
        )
        for (name, role, model), cost, answers in zip(models, costs, asked, strict=True)
    ]


def ask_tasks(
    name: str, model: ModelRef | Future, tasks: Sequence[TaskChoice], dtype: Dtype, runtime: Runtime
) -> list[Future]:
    """The model's scores, one future per entry of the list of tasks."""
    return [
        (evaluate_code if isinstance(entry, CodeProblems) else evaluate_tasks).submit(
            model, entry, dtype, runtime=runtime, label=f"tasks {entry.name} {name}"
        )
        for entry in expand_suites(tasks)
    ]


def _have_written(
    models: Sequence[tuple[str, Role, Future]], shards: list[ShardRef], evaluation: Comparison, runtime: Runtime
) -> dict[str, Future]:
    """What the target writes before and after each training of it, by name; nothing where the recipe wants no gate."""
    if evaluation.gate is None:
        return {}
    return {
        name: probe.submit(model, shards, evaluation.probe, runtime=runtime, label=f"probe {name}")
        for name, role, model in models
        if role != "source"
    }


def _judge_fused(
    models: Sequence[tuple[str, Role, Future]],
    costs: Sequence[Future],
    written: Mapping[str, Future],
    evaluation: Comparison,
    runtime: Runtime,
) -> Future | None:
    """The verdict on the fused model against the target before training; None where the recipe wants none."""
    if evaluation.gate is None:
        return None
    found = {role: (name, model, cost) for (name, role, model), cost in zip(models, costs, strict=True)}
    (name, model, cost), (before, _, cost_before) = found["fused"], found["target"]
    return gate.submit(
        model, written[name], written[before], cost, cost_before, evaluation.gate,
        runtime=runtime, label=f"gate {name}",
    )  # fmt: skip
