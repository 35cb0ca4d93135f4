"""The table of a study: every arm on the same held-out documents, against one rival and against the main arm.

An *arm* is one way to make a model: a training of the target with one seed or several, or a model as it is (a source,
the target before, several models read as one). All numbers are bits per byte; means give each domain the same
weight. Where an arm has several seeds, its number is the mean over them, document by document. Intervals are 95 %
percentile intervals over resampled documents, paired where two arms are compared (`fusion_core.metrics`): they say
what another text would change. What another seed would change is told beside them, by the seeds themselves.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from fusion_core.metrics import Interval
from fusion_core.spec import Spec
from tasks.artifacts import EvaluationRef, ModelRef, ReportRef
from tasks.evaluation.costs import RESAMPLES, SEED, Costs, check_same_documents
from tasks.report.comparison import Domain, Regression
from tasks.storage.store import Store

TABLE = "table.json"
SOURCES = "Sources"
"""The heading of the source models, whose best per domain is what there is to recover."""
CONTROLS = "Controls"
"""The heading of the arms whose teachers know nothing of the sources."""

Kind = Literal["read", "trained", "merged"]
"""How an arm's models came about: read as they were, trained on the recipe's text, or merged from other arms."""

_Runs = Mapping[int | None, Costs]


class ArmRun(Spec):
    """One model of an arm. `seed` None: nothing was trained. `model` None: several models read as one."""

    seed: int | None
    model: ModelRef | None
    evaluation: EvaluationRef


class Arm(Spec):
    """An arm and its models. `group` is the heading it stands under, the question that it answers."""

    name: str
    group: str
    kind: Kind
    runs: tuple[ArmRun, ...]


class Gain(Spec):
    """One arm against another, (arm - other) / other; below zero the arm is better.

    seeds: the ones both have, which alone are compared; `by_seed` is the mean's estimate for each of them.
    Empty where one of the two has no seeds, or they have none in common; then the means over all are compared.
    """

    other: str
    mean: Interval
    domains: tuple[Interval, ...]
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]


class Training(Spec):
    """How an arm was trained.

    same_batches: in every shared seed the rival saw the same batches in the same order. None where that isn't known:
    no seed is shared, or the record of a training is gone and the others don't differ.
    """

    lm_weight: float
    steps: int
    sequences: int
    tokens: int
    same_batches: bool | None
    batches_sha256: tuple[str, ...]


class ArmResult(Spec):
    """One line of the table. `by_seed`: the mean bits per byte of each seed.

    recovered: of the gap between the rival and the best source, domain by domain, the share that the arm closes;
    the last is the mean of those. Empty where nothing was trained, or no source is better than the rival in a domain.
    """

    name: str
    group: str
    kind: Kind
    seeds: tuple[int, ...]
    domains: tuple[Interval, ...]
    mean: Interval
    by_seed: tuple[float, ...]
    training: Training | None
    against_rival: Gain | None
    main_against: Gain | None
    recovered: tuple[float, ...] = ()


class ArmRegression(Regression):
    """Where a trained or merged arm is worse than the rival; see `Regression`."""

    arm: str


class ArmTable(Spec):
    """The whole table, arms in the order given."""

    title: str
    domains: tuple[Domain, ...]
    rival: str
    main: str
    arms: tuple[ArmResult, ...]
    regressions: tuple[ArmRegression, ...]
    resamples: int
    seed: int

    def arm(self, name: str) -> ArmResult | None:
        """The line of that name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def groups(self) -> tuple[tuple[str, tuple[ArmResult, ...]], ...]:
        """The lines under each heading, headings in the order of first use."""
        names = dict.fromkeys(arm.group for arm in self.arms)
        return tuple((name, tuple(arm for arm in self.arms if arm.group == name)) for name in names)


def make_table(title: str, arms: Sequence[Arm], main: str, rival: str, store: Store) -> ArmTable:
    """The table of measured arms; an arm called `main` or `rival` may be missing, and what needs it with it.

    Raises ValueError unless all were measured on the same documents.
    """
    runs = {arm.name: {run.seed: Costs.read(store, run.evaluation) for run in arm.runs} for arm in arms}
    flat = [(arm.name, costs) for arm in arms for costs in runs[arm.name].values()]
    check_same_documents([name for name, _ in flat], [costs for _, costs in flat])
    domains = [(name, part) for name, part in flat[0][1].by_domain()]
    trainings = {arm.name: _read_trainings(arm, store) for arm in arms}
    best = _best_sources([runs[arm.name] for arm in arms if arm.group == SOURCES])
    results = []
    for arm in arms:
        own, change = runs[arm.name], arm.kind != "read"
        mean = _average(own.values())
        against = _gain(own, rival, runs[rival]) if rival in runs and arm.name != rival else None
        results.append(
            ArmResult(
                name=arm.name,
                group=arm.group,
                kind=arm.kind,
                seeds=tuple(seed for seed in own if seed is not None),
                domains=tuple(part.interval() for _, part in mean.by_domain()),
                mean=mean.interval(),
                by_seed=tuple(costs.interval().estimate for seed, costs in own.items() if seed is not None),
                training=_training(
                    trainings[arm.name], trainings.get(rival, {}), own.keys() & runs.get(rival, {}).keys()
                ),
                against_rival=against,
                main_against=_gain(runs[main], arm.name, own) if main in runs and arm.name != main else None,
                recovered=_recovered(mean, _average(runs[rival].values()), best) if change and rival in runs else (),
            )
        )
    return ArmTable(
        title=title,
        domains=tuple(
            Domain(name=name, documents=len(part.ids), bytes=int(part.bytes.sum())) for name, part in domains
        ),
        rival=rival,
        main=main,
        arms=tuple(results),
        regressions=tuple(r for result in results for r in _regressions(result, [name for name, _ in domains])),
        resamples=RESAMPLES,
        seed=SEED,
    )


def read_table(store: Store, ref: ReportRef) -> ArmTable:
    """The table of a study's report in the store."""
    return ArmTable.model_validate_json((store.fetch(ref, [TABLE]) / TABLE).read_bytes())


def _average(runs: Iterable[Costs]) -> Costs:
    """The mean over seeds of what each document cost."""
    listed = list(runs)
    return replace(listed[0], nats=np.mean([costs.nats for costs in listed], axis=0))


def _gain(own: _Runs, other: str, theirs: _Runs) -> Gain:
    shared = [seed for seed in own if seed is not None and seed in theirs]
    a = _average([own[seed] for seed in shared] or own.values())
    b = _average([theirs[seed] for seed in shared] or theirs.values())
    return Gain(
        other=other,
        mean=a.against(b),
        domains=a.against_by_domain(b),
        seeds=tuple(seed for seed in shared if seed is not None),
        by_seed=tuple(own[seed].against(theirs[seed]).estimate for seed in shared),
    )


def _best_sources(sources: Sequence[_Runs]) -> list[float]:
    """The least bits per byte of any source, by domain; empty without sources."""
    rates = [[part.interval().estimate for _, part in _average(runs.values()).by_domain()] for runs in sources]
    return [min(column) for column in zip(*rates, strict=True)]


def _recovered(arm: Costs, rival: Costs, best: Sequence[float]) -> tuple[float, ...]:
    if not best:
        return ()
    pairs = zip(arm.by_domain(), rival.by_domain(), best, strict=True)
    shares = []
    for (_, own), (_, alone), reachable in pairs:
        before, after = alone.interval().estimate, own.interval().estimate
        if before <= reachable:  # nothing to recover there
            return ()
        shares.append((before - after) / (before - reachable))
    return (*shares, sum(shares) / len(shares))


def _read_trainings(arm: Arm, store: Store) -> dict[int, dict[str, Any]]:  # Any: plain JSON
    """By seed, what the manifests say of the trainings; those that are no longer in the store are missing."""
    if arm.kind != "trained":
        return {}
    found = {run.seed: store.manifest(run.model) for run in arm.runs if run.model is not None and run.seed is not None}
    return {
        seed: {"lm_weight": manifest.arguments["spec"]["lm_weight"], **manifest.facts}
        for seed, manifest in found.items()
        if manifest is not None
    }


def _training(
    own: dict[int, dict[str, Any]], rival: dict[int, dict[str, Any]], shared: Set[int | None]
) -> Training | None:
    """shared: the seeds in which both were measured."""
    if not own:
        return None
    first = next(iter(own.values()))
    known = [own[seed]["batches_sha256"] == rival[seed]["batches_sha256"] for seed in own.keys() & rival.keys()]
    are_all_known = 0 < len(known) == len(shared)
    return Training(
        lm_weight=first["lm_weight"],
        steps=first["steps"],
        sequences=first["sequences"],
        tokens=first["tokens"],
        same_batches=all(known) if are_all_known or not all(known) else None,
        batches_sha256=tuple(facts["batches_sha256"] for facts in own.values()),
    )


def _regressions(result: ArmResult, domains: Sequence[str]) -> list[ArmRegression]:
    gain = result.against_rival
    if gain is None or result.kind == "read":
        return []
    places: list[tuple[str | None, Interval]] = [(None, gain.mean), *zip(domains, gain.domains, strict=True)]
    return [
        ArmRegression(arm=result.name, rival=gain.other, domain=name, difference=interval, certain=interval.low > 0)
        for name, interval in places
        if interval.estimate > 0
    ]
