"""`compare`: one recipe, what is varied of it, and what it must be better than, in one table.

    recipe --+--> fused ------------+
             +--> each variant -----+--> train, once per seed --+--> evaluate --> tabulate
             +--> controls ---------+    merge -----------------+
    sources, target as they are, several read as one -----------+

Arms share what they have in common: texts, models, extraction and alignment are looked up in the store, so a variant
costs what it changes, mostly one training. Run again, only what is missing is computed; a part of the arms makes a
table of its own. Every shard must succeed, whatever `min_shards` says: arms are compared on equal data. A training that
fails is missing in the table, which is made all the same; the run then ends failed and says what is missing.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from prefect import flow
from prefect.states import Failed

from flows.corpora import build_recipe_shards, build_shards
from flows.execution import executing
from flows.keeping import Keeper
from flows.recipe import Recipe
from flows.run_page import run_page
from flows.run_tables import Grid
from flows.stages import align_source, extract_shards, fuse_shards, obtain_model, trusting
from flows.study import MAIN, RIVAL, Arm, Merging, Study
from flows.study_page import arms_grid, summarize_study
from fusion_core.controls import Control, Shuffled, Uniform, Unigram
from fusion_core.ensembles import Weighting
from tasks.artifacts import ReportRef, Runtime, ShardRef
from tasks.control import control_teacher
from tasks.ensemble import EnsembleSpec, evaluate_ensemble
from tasks.evaluate import evaluate
from tasks.merge import merge
from tasks.report.arms import SOURCES, ArmRun, Kind
from tasks.report.arms import Arm as MeasuredArm
from tasks.report.study import tabulate
from tasks.secrets import hiding_secrets
from tasks.step import Future, Planned, ShardsFailed, is_planning, planning, settle
from tasks.storage.store import open_store
from tasks.train import train

_CONTROLS: dict[str, Control] = {"shuffled": Shuffled(), "unigram": Unigram(), "uniform": Uniform()}
_UNTRAINED, _TOGETHER = "Target before", "Sources read as one"
Runs = dict[int | None, Future]
"""An arm's models by seed; None where nothing was trained."""


@flow(name="compare", flow_run_name="{study.name}")
@hiding_secrets()
def compare(study: Study, runtime: Runtime = Runtime()) -> Any:  # Any: ReportRef, or a failed state
    """Trains and measures every arm of a study. Every step is cached: run again, only what is missing is computed.

    Args:
        study: A recipe, its variants, the seeds.
        runtime: Where and how it is computed; changes no result.
    """
    runtime = trusting(runtime, (study.base.target, *study.base.sources))
    if is_planning():
        return _compare(study, runtime)
    open_store(runtime).probe()
    keeper = Keeper(study.name, study.model_dump(mode="json"), runtime)
    plan = functools.partial(plan_study, study, runtime)
    tables: list[ReportRef] = []
    summarize = functools.partial(summarize_study, open_store(runtime), tables)
    grids = [Grid(), arms_grid(study.base.target.name)]
    with run_page(study.name, grids, open_store(runtime), plan, summarize):
        try:
            with keeper.planned(plan), executing(runtime):
                made, failures = _compare(study, runtime)
            tables.append(made)
        except ShardsFailed as failure:
            return Failed(message=str(failure), data=failure)
    keeper.keep([made])
    if failures:
        incomplete = TableIncomplete(failures, made)
        return Failed(message=str(incomplete), data=incomplete)
    return made


class TableIncomplete(ShardsFailed):
    """Some runs of arms failed, and the table was made without them. `table`: the table."""

    def __init__(self, failures: Mapping[str, Exception], table: ReportRef) -> None:
        message, causes = _sum_up(failures)
        super().__init__(f"{message}; the table without them is {table.address}", causes)
        self.table = table


def _sum_up(failures: Mapping[str, Exception]) -> tuple[str, list[Exception]]:
    causes = list(failures.values())
    first = f"{type(causes[0]).__name__}: {causes[0]}"
    return f"{len(causes)} failed ({', '.join(failures)}), the first because of {first}", causes


def plan_study(study: Study, runtime: Runtime) -> list[Planned]:
    """What a study needs, as far as it is known, with repetitions; computes nothing."""
    with planning() as planned:
        _compare(study, runtime)
    return planned


def _compare(study: Study, runtime: Runtime) -> tuple[ReportRef, dict[str, Exception]]:
    """The table, and why what is missing in it failed, by arm and seed."""
    base, (arms, mergings) = study.base, study.plan_arms()
    models: dict[str, Runs] = {m.name: {None: obtain_model(m, runtime)} for m in (base.target, *base.sources)}
    for arm in arms:  # one after the other: what a former one made, a later one finds
        models[arm.variant.name] = train_arm(arm, runtime)
    for merging in mergings:
        parts = [models[name] for name in merging.models]
        models[merging.name] = _merge(merging, parts, models[base.target.name][None], runtime)
    settle([model for runs in models.values() for model in runs.values()], "models", minimum=0)

    assert base.evaluation is not None
    text, reading = build_shards(base.evaluation.corpus, "corpus held-out", runtime), base.evaluation.spec

    def measure(name: str, group: str, kind: Kind) -> _Line:
        costs = {
            seed: evaluate.submit(model, text, reading, runtime=runtime, label=f"evaluate {_label(name, seed)}")
            for seed, model in models[name].items()
        }
        return _Line(name, group, kind, models[name], costs)

    lines = [measure(source.name, SOURCES, "read") for source in base.sources]
    lines += _read_together(base, models, text, runtime)
    lines.append(measure(base.target.name, _UNTRAINED, "read"))
    lines += [measure(arm.variant.name, arm.variant.question, "trained") for arm in arms]
    lines += [measure(merging.name, merging.question, "merged") for merging in mergings]
    failures: dict[str, Exception] = {}
    measured = [line.settled(failures) for line in lines]
    table, asked = [arm for arm in measured if arm.runs], study.model_dump(mode="json", exclude={"only"})
    if not table:
        raise ShardsFailed(*_sum_up(failures))
    made = tabulate.submit(study.name, table, MAIN, RIVAL, asked, runtime=runtime, label="tabulate")
    return made.result(), failures


def train_arm(arm: Arm, runtime: Runtime) -> Runs:
    """The target trained as the arm says, by seed; its teacher is there when this returns, the trainings are not."""
    recipe, name = arm.recipe, arm.variant.name
    target = obtain_model(recipe.target, runtime)
    shards = build_recipe_shards(recipe, runtime)
    teachers, spec = [], recipe.training.without_teacher()
    if arm.variant.teacher != "none":
        teachers = settle(_teach(arm, target, shards, runtime), f"shards of {name}")
        spec = recipe.training
    runs: Runs = {}
    for seed in arm.seeds:
        at_seed, label = spec.model_copy(update={"seed": seed}), f"train {recipe.target.name} {_label(name, seed)}"
        runs[seed] = train.submit(target, shards, teachers, at_seed, runtime=runtime, label=label)
    return runs


def _teach(arm: Arm, target: Future, shards: list[ShardRef], runtime: Runtime) -> list[Future]:
    """The arm's teacher of each shard."""
    recipe, name = arm.recipe, arm.variant.name
    own = extract_shards(recipe, recipe.target.name, target, shards, runtime)
    if arm.variant.teacher == "target":
        return fuse_shards(recipe, own, [], runtime, target_as_teacher=True, label=f"fuse {name}")
    aligned = [
        align_source(recipe, source.name, obtain_model(source, runtime), target, own, shards, runtime)
        for source in recipe.sources
    ]
    fused = fuse_shards(recipe, own, aligned, runtime, label=f"fuse {name}")
    control = _CONTROLS.get(arm.variant.teacher)
    if control is None:
        return fused
    calls = [(mine, teacher, control) for mine, teacher in zip(own, fused, strict=True)]
    return control_teacher.submit_each(calls, runtime=runtime, label=f"control {name}")


def _merge(merging: Merging, parts: Sequence[Runs], target: Future, runtime: Runtime) -> Runs:
    """The merged models, one per seed that all parts have; parts that were not trained go with every seed."""
    trained = [list(runs) for runs in parts if None not in runs]
    seeds: list[int | None] = min(trained, key=len) if trained else [None]
    base = target if merging.strategy.needs_base else None
    merged: Runs = {}
    for seed in seeds:
        chosen = [runs[None] if None in runs else runs[seed] for runs in parts]
        label = f"merge {_label(merging.name, seed)}"
        merged[seed] = merge.submit(chosen, base, merging.strategy, runtime=runtime, label=label)
    return merged


def _read_together(base: Recipe, models: Mapping[str, Runs], text: list[ShardRef], runtime: Runtime) -> list["_Line"]:
    """The sources read as one, with equal weights and with those that a document's beginning earned them."""
    assert base.evaluation is not None
    if len(base.sources) < 2:
        return []
    together = [models[source.name][None] for source in base.sources]
    lines = []
    for weighting in get_args(Weighting):
        spec = EnsembleSpec(weighting=weighting, dtype=base.evaluation.spec.dtype)
        name = f"sources together, {weighting} weights"
        cost = evaluate_ensemble.submit(together, text, spec, runtime=runtime, label=f"evaluate {name}")
        lines.append(_Line(name, _TOGETHER, "read", {None: None}, {None: cost}))
    return lines


@dataclass(frozen=True)
class _Line:
    """An arm under way: its models and what they paid, by seed. A model is None where several were read as one."""

    name: str
    group: str
    kind: Kind
    models: Mapping[int | None, Future | None]
    costs: Mapping[int | None, Future]

    def settled(self, failures: dict[str, Exception]) -> MeasuredArm:
        """The line as the table takes it, of the runs that succeeded; why others did not is added to `failures`."""
        runs = []
        for seed, model in self.models.items():
            try:
                made, evaluation = None if model is None else model.result(), self.costs[seed].result()
            except Exception as error:  # whatever ended a run, the others are compared
                failures[_label(self.name, seed)] = error
            else:
                runs.append(ArmRun(seed=seed, model=made, evaluation=evaluation))
        return MeasuredArm(name=self.name, group=self.group, kind=self.kind, runs=tuple(runs))


def _label(name: str, seed: int | None) -> str:
    return name if seed is None else f"{name}, seed {seed}"
