"""The smoke gate's rules: when a trained model counts as worse than what it was trained from.

Everything is relative to the target before training: a small model repeats itself anyway, and the gate is about
getting worse. A bound is passed only where the paired 95 % interval excludes zero too, so that the luck of a few
prompts marks nobody.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from fusion_core.metrics import Interval, paired_difference
from fusion_core.spec import Spec
from tasks.artifacts import Manifest, ModelRef, VerdictRef
from tasks.evaluation.costs import Costs
from tasks.library.lineage import Library

PROBE, VERDICT = "probe.json", "verdict.json"
BITS = "bits per byte"


class GateSpec(Spec):
    """How much worse than the target before training a trained model may be, in any domain."""

    bits_per_byte: float = Field(
        0.02,
        ge=0,
        title="Bits per byte",
        description="Relative. Two in a hundred is about what another seed of the same training differs by.",
    )
    repetition: float = Field(
        0.15,
        ge=0,
        title="Repetition",
        description="Share of four-piece runs. Loops take most of a text: a model that starts to loop gains far more.",
    )
    broken_words: float = Field(
        0.10,
        ge=0,
        title="Broken words",
        description="Share of words unknown to the domain: wrongly mapped tokens break one identifier in ten and more.",
    )
    broken_numbers: float = Field(
        0.15, ge=0, title="Broken numbers", description="Share of numbers; there are few of them, so they scatter."
    )
    formatting: float = Field(
        0.10, ge=0, title="White space", description="Distance of shares. Lost or doubled spaces move it by 0.15."
    )
    garbled: float = Field(
        0.02, ge=0, title="Garbled", description="Share of characters; sound models write none, whatever their size."
    )
    empty: float = Field(0.10, ge=0, title="Empty", description="Share of texts that end before they begin.")


class ProbedText(Spec):
    """One continuation and its symptoms, by name (`tasks.evaluation.symptoms.Symptoms`)."""

    document: str
    domain: str
    prompt: str
    text: str
    ended: bool
    symptoms: dict[str, float]


class Finding(Spec):
    """One measure in one domain: model - target (bits per byte: relative), and whether that is over the bound."""

    domain: str
    measure: str
    model: float
    target: float
    difference: Interval
    bound: float
    failed: bool

    @property
    def reason(self) -> str:
        """The finding in words."""
        d, relative = self.difference, self.measure == BITS
        change = f"{100 * d.estimate:+.1f} {'%' if relative else 'points'} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
        values = f"{self.model:.3f} against {self.target:.3f} before training"
        return f"{self.measure.replace('_', ' ')} in {self.domain}: {values}, {change}, bound {100 * self.bound:+.1f}"


class Verdict(Spec):
    """Passed or failed, and everything that was compared."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no measure got worse by more than its bound."""
        return not any(finding.failed for finding in self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed; empty when it passed."""
        return tuple(finding.reason for finding in self.findings if finding.failed)


def judge(
    own: Sequence[ProbedText], before: Sequence[ProbedText], costs: Costs, costs_before: Costs, spec: GateSpec
) -> Verdict:
    """The verdict on a model by its texts and costs, and those of the target before training.

    Raises ValueError unless both continued the same documents.
    """
    if [text.document for text in own] != [text.document for text in before]:
        raise ValueError(
            f"gate: expected both models probed on the same documents, found {len(own)} and {len(before)} texts with "
            f"{len({t.document for t in own} & {t.document for t in before})} in common; probe both on one corpus"
        )
    findings = _judge_costs(costs, costs_before, spec.bits_per_byte)
    for domain in dict.fromkeys(text.domain for text in own):
        mine, theirs = ([t.symptoms for t in texts if t.domain == domain] for texts in (own, before))
        for measure in mine[0]:
            a, b = ([symptoms[measure] for symptoms in texts] for texts in (mine, theirs))
            difference = paired_difference(a, b)
            means = sum(a) / len(a), sum(b) / len(b)
            findings.append(_find(domain, measure, *means, difference, getattr(spec, measure)))
    return Verdict(findings=tuple(findings))


def find_verdicts(library: Library, model: ModelRef) -> list[Manifest]:
    """The manifests of all verdicts on a model; their facts say `passed` and `reasons`. Ask before publishing it."""
    return [m for m in library.manifests.values() if isinstance(m.ref, VerdictRef) and m.inputs[0] == model]


def read_probe(folder: Path) -> list[ProbedText]:
    """The texts that lie in a probe's folder."""
    return [ProbedText(**entry) for entry in json.loads((folder / PROBE).read_text(encoding="utf-8"))]


def read_verdict(folder: Path) -> Verdict:
    """The verdict that lies in an artifact's folder."""
    return Verdict.model_validate_json((folder / VERDICT).read_bytes())


def _judge_costs(costs: Costs, before: Costs, bound: float) -> list[Finding]:
    pairs = zip(costs.by_domain(), before.by_domain(), costs.against_by_domain(before), strict=True)
    return [
        _find(name, BITS, mine.interval().estimate, theirs.interval().estimate, difference, bound)
        for (name, mine), (_, theirs), difference in pairs
    ]


def _find(domain: str, measure: str, model: float, target: float, difference: Interval, bound: float) -> Finding:
    failed = difference.estimate > bound and difference.low > 0
    return Finding(
        domain=domain, measure=measure, model=model, target=target, difference=difference, bound=bound, failed=failed
    )
