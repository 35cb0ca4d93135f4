"""The comparison: every model on the same held-out documents, and the fused one against its rivals.

A rival is the target or one of its other trainings (the baselines). All numbers are bits per byte; means
give each domain the same weight; intervals are 95 % percentile intervals over resampled documents, paired
where two models are compared (`fusion_core.metrics`).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fusion_core.metrics import Interval
from fusion_core.spec import Spec
from tasks.artifacts import EvaluationRef, ModelRef, ProbeRef, ReportRef, TaskScoresRef, VerdictRef
from tasks.evaluation.costs import RESAMPLES, SEED, Costs, check_same_documents
from tasks.evaluation.gate_rules import ProbedText, Verdict, read_probe, read_verdict
from tasks.evaluation.task_scores import SCORES, TaskScore, read_scores_file
from tasks.storage.store import Store

COMPARISON = "comparison.json"

Role = Literal["source", "target", "baseline", "fused"]


class ReportRow(Spec):
    """One model of the table: what it paid for the held-out text, earned on tasks and wrote, and the verdict on it."""

    name: str
    role: Role
    model: ModelRef
    evaluation: EvaluationRef
    tasks: tuple[TaskScoresRef, ...] = ()
    verdict: VerdictRef | None = None
    probe: ProbeRef | None = None


class Domain(Spec):
    """How much held-out text there is of one domain."""

    name: str
    documents: int
    bytes: int


class Standing(Spec):
    """One model's bits per byte: per domain in the comparison's order, and the mean over domains.

    calibration_error: over all tokens, 0 to 1; None where the evaluation doesn't say.
    scores: its headline score on each entry of the list of tasks. gate: None for a model that wasn't judged.
    written: how it went on by itself after one held-out prompt of each domain; empty where it was not asked to.
    """

    name: str
    role: Role
    model: ModelRef
    evaluation: EvaluationRef
    tasks: tuple[TaskScoresRef, ...] = ()
    verdict: VerdictRef | None = None
    probe: ProbeRef | None = None
    domains: tuple[Interval, ...]
    mean: Interval
    calibration_error: float | None = None
    scores: tuple[TaskScore, ...] = ()
    gate: Verdict | None = None
    written: tuple[ProbedText, ...] = ()


class Difference(Spec):
    """The fused model against one rival, (fused - rival) / rival; below zero the fused model is better.

    domains: the same within each domain, in the comparison's order.
    """

    rival: str
    role: Role
    mean: Interval
    domains: tuple[Interval, ...]


class Regression(Spec):
    """Where the fused model is worse than a rival. `domain` None is the mean; `certain`: the interval excludes zero."""

    rival: str
    domain: str | None
    difference: Interval
    certain: bool


class Comparison(Spec):
    """The table: one standing per model, in the order given, and one difference per rival of the fused model."""

    title: str
    domains: tuple[Domain, ...]
    standings: tuple[Standing, ...]
    differences: tuple[Difference, ...]
    regressions: tuple[Regression, ...]
    resamples: int
    seed: int

    @property
    def fused(self) -> Standing:
        """The fused model's standing."""
        return next(standing for standing in self.standings if standing.role == "fused")

    @property
    def strongest(self) -> Difference | None:
        """The difference from the rival with the best mean; None without rivals."""
        means = [s.mean.estimate for s in self.standings if s.role in ("target", "baseline")]
        return self.differences[int(np.argmin(means))] if means else None

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        fused, strongest, count = self.fused, self.strongest, len(self.domains)
        over = f"mean over {count} domains, " if count > 1 else ""
        found = (
            f"The fused model needs {fused.mean.estimate:.3f} bits per byte of held-out text "
            f"({over}95\N{NO-BREAK SPACE}% interval {fused.mean.low:.3f} to {fused.mean.high:.3f})"
        )
        if strongest is None:
            return f"{found}; this run has nothing to compare it with."
        d = strongest.mean
        interval = f"({percent(d.estimate)}, 95\N{NO-BREAK SPACE}% interval {percent(d.low)} to {percent(d.high)})"
        if d.low <= 0 <= d.high:
            return f"{found}; this text can’t tell it from {strongest.rival}, its strongest rival {interval}."
        better = sum(domain.estimate < 0 for domain in strongest.domains)
        word = "fewer" if d.high < 0 else "more"
        where = f", with fewer in {better} of {count} domains" if count > 1 else ""
        return f"{found}, {word} than its strongest rival, {strongest.rival} {interval}{where}."


def percent(share: float) -> str:
    """A signed percentage with one decimal and a true minus sign: −6.8 %."""
    return f"{100 * share:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def compare(title: str, rows: Sequence[ReportRow], store: Store) -> Comparison:
    """The comparison of evaluated models.

    Raises ValueError unless exactly one row is fused and all were measured on the same documents.
    """
    fused_rows = [number for number, row in enumerate(rows) if row.role == "fused"]
    if len(fused_rows) != 1:
        raise ValueError(
            f"report: expected exactly 1 fused model to compare, found {len(fused_rows)} among {len(rows)} rows"
        )
    costs = [Costs.read(store, row.evaluation) for row in rows]
    check_same_documents([row.name for row in rows], costs)
    domains, fused = costs[0].by_domain(), costs[fused_rows[0]]
    differences = tuple(
        Difference(rival=row.name, role=row.role, mean=fused.against(cost), domains=fused.against_by_domain(cost))
        for row, cost in zip(rows, costs, strict=True)
        if row.role in ("target", "baseline")
    )
    return Comparison(
        title=title,
        domains=tuple(
            Domain(name=name, documents=len(part.ids), bytes=int(part.bytes.sum())) for name, part in domains
        ),
        standings=tuple(_standing(store, row, cost) for row, cost in zip(rows, costs, strict=True)),
        differences=differences,
        regressions=tuple(r for d in differences for r in _regressions(d, [name for name, _ in domains])),
        resamples=RESAMPLES,
        seed=SEED,
    )


def read_comparison(store: Store, ref: ReportRef) -> Comparison:
    """The comparison of a report in the store."""
    return Comparison.model_validate_json((store.fetch(ref, [COMPARISON]) / COMPARISON).read_bytes())


def _standing(store: Store, row: ReportRow, costs: Costs) -> Standing:
    manifest = store.manifest(row.evaluation)
    calibration = manifest.facts.get("calibration", {}) if manifest else {}
    return Standing(
        **dict(row),
        domains=tuple(part.interval() for _, part in costs.by_domain()),
        mean=costs.interval(),
        calibration_error=calibration.get("", {}).get("error"),
        scores=tuple(read_scores_file(store.fetch(ref, [SCORES])).headline for ref in row.tasks),
        gate=None if row.verdict is None else read_verdict(store.fetch(row.verdict)),
        written=() if row.probe is None else _first_of_each_domain(read_probe(store.fetch(row.probe))),
    )


def _first_of_each_domain(texts: Sequence[ProbedText]) -> tuple[ProbedText, ...]:
    return tuple({text.domain: text for text in reversed(texts)}.values())[::-1]


def _regressions(difference: Difference, domains: Sequence[str]) -> list[Regression]:
    places: list[tuple[str | None, Interval]] = [
        (None, difference.mean),
        *zip(domains, difference.domains, strict=True),
    ]
    return [
        Regression(rival=difference.rival, domain=domain, difference=interval, certain=interval.low > 0)
        for domain, interval in places
        if interval.estimate > 0
    ]
