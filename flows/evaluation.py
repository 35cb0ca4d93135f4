"""`evaluate_model`: what a model pays for held-out text, alone or against others."""

import functools
from collections.abc import Callable, Sequence

from prefect import flow
from pydantic import Field

from flows.corpora import build_shards
from flows.execution import executing
from flows.keeping import Keeper
from flows.measures import ask_tasks
from flows.stages import trusting
from fusion_core.spec import Spec
from tasks.artifacts import ModelRef, Runtime
from tasks.corpus import CorpusSpec
from tasks.download import download
from tasks.evaluate import EvaluationSpec, evaluate
from tasks.evaluation.benchmarks import TaskChoice
from tasks.models.folders import HubModel, LocalModel
from tasks.report import ReportRow
from tasks.secrets import hiding_secrets
from tasks.step import Planned, is_planning, planning
from tasks.storage.store import open_store


class Candidate(Spec):
    """A model to measure: one of the hub, of this machine, or of the store."""

    name: str = Field(title="Name", min_length=1)
    model: HubModel | LocalModel | ModelRef = Field(title="Model", discriminator="kind")


@flow(name="evaluate-model")
@hiding_secrets()
def evaluate_model(
    model: Candidate,
    corpus: CorpusSpec,
    spec: EvaluationSpec = EvaluationSpec(),
    against: Sequence[Candidate] = (),
    tasks: Sequence[TaskChoice] = (),
    runtime: Runtime = Runtime(),
) -> list[ReportRow]:
    """Measures models on the same documents: rows for `tasks.report.compare`, with `model` compared to the others."""
    runtime = trusting(runtime, (model, *against))
    measure = functools.partial(_evaluate, (model, *against), corpus, spec, tasks, runtime)
    if is_planning():
        return measure()
    open_store(runtime).probe()
    asked = {
        "models": [candidate.model_dump(mode="json") for candidate in (model, *against)],
        "corpus": corpus.model_dump(mode="json"),
        "spec": spec.model_dump(mode="json"),
        "tasks": [task.model_dump(mode="json") for task in tasks],
    }
    keeper = Keeper(f"evaluate {model.name}", asked, runtime)
    with keeper.planned(functools.partial(_plan, measure)), executing(runtime):
        rows = measure()
    keeper.keep(ref for row in rows for ref in (row.evaluation, *row.tasks))
    return rows


def _plan(measure: Callable[[], object]) -> list[Planned]:
    with planning() as planned:
        measure()
    return planned


def _evaluate(
    candidates: Sequence[Candidate],
    corpus: CorpusSpec,
    spec: EvaluationSpec,
    tasks: Sequence[TaskChoice],
    runtime: Runtime,
) -> list[ReportRow]:
    shards = build_shards(corpus, "corpus held-out", runtime)
    rows = []
    for candidate in candidates:
        name, found = candidate.name, candidate.model
        ref = (
            found if isinstance(found, ModelRef) else download.submit(found, runtime=runtime, label=f"download {name}")
        )
        cost = evaluate.submit(ref, shards, spec, runtime=runtime, label=f"evaluate {name}")
        rows.append((name, ref, cost, ask_tasks(name, ref, tasks, spec.dtype, runtime)))
    return [
        ReportRow(
            name=name,
            role="fused" if number == 0 else "baseline",
            model=ref if isinstance(ref, ModelRef) else ref.result(),
            evaluation=cost.result(),
            tasks=tuple(scores.result() for scores in asked),
        )
        for number, (name, ref, cost, asked) in enumerate(rows)
    ]
