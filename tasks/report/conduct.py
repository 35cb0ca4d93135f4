"""How models do besides predicting text, as sections of the page: the smoke gate, tasks, calibration."""

from fusion_core.metrics import Interval
from tasks.report.charts import Mark, interval_plot, padded
from tasks.report.comparison import Comparison, Standing
from tasks.report.markup import Html, element, heading, panels, paragraph, row, table


def describe_conduct(comparison: Comparison) -> list[Html]:
    """The sections, without those about which nothing was measured."""
    return [*_gate(comparison.fused), *_writing(comparison), *_tasks(comparison), *_calibration(comparison)]


def gate_line(standing: Standing) -> str:
    """The verdict in one sentence; empty for a model that wasn't judged."""
    if standing.gate is None:
        return ""
    if standing.gate.passed:
        return f"Smoke gate passed: in {len(standing.gate.findings)} measures it is not worse than before training."
    failed = len(standing.gate.reasons)
    return f"Smoke gate failed: in {failed} of {len(standing.gate.findings)} measures it is worse than before training."


def _gate(fused: Standing) -> list[Html]:
    if fused.gate is None:
        return []
    rows = [
        row(
            finding.domain,
            finding.measure.replace("_", " "),
            f"{finding.target:.3f}",
            f"{finding.model:.3f}",
            _points(finding.difference),
            f"{100 * finding.bound:+.1f}",
            class_="strong" if finding.failed else "",
        )
        for finding in fused.gate.findings
    ]
    reasons = [element("ul", *[element("li", reason) for reason in fused.gate.reasons])] if fused.gate.reasons else []
    return [
        heading("Smoke gate"),
        paragraph(gate_line(fused), class_="verdict"),
        *reasons,
        paragraph(
            "What the model writes by itself after held-out prompts, and what it pays for held-out text, against the "
            "target before training. Shares from 0 to 1; the change is in points of a hundred (bits per byte: in per "
            "cent) with its 95\N{NO-BREAK SPACE}% interval. It fails where the change is over its bound and the "
            "interval above zero."
        ),
        table(["domain", "measure", "before", "after", "change", "bound"], rows),
    ]


def _writing(comparison: Comparison) -> list[Html]:
    """One prompt of each domain and how the models went on, side by side."""
    asked = [standing for standing in comparison.standings if standing.written]
    if not asked:
        return []
    parts = []
    for number, text in enumerate(asked[0].written):
        answers = [(s.name, element("pre", s.written[number].text)) for s in asked]
        parts += [element("h3", f"{text.domain}, after"), element("pre", text.prompt), panels(answers)]
    return [
        heading("What the models write"),
        paragraph(
            "The likeliest token each time, from the beginning of the first held-out document of each domain that is "
            "long enough: one look, no measure. The gate counts over all prompts."
        ),
        *parts,
    ]


def _tasks(comparison: Comparison) -> list[Html]:
    first = comparison.standings[0].scores
    if not first:
        return []
    rows = [
        row(s.name, *[f"{score.value:.3f}" for score in s.scores], class_="strong" if s.role == "fused" else "")
        for s in comparison.standings
    ]
    pictures = []
    for number, score in enumerate(first):
        marks = [
            Mark(s.name, s.scores[number].interval, f"{s.scores[number].value:.3f}", strong=s.role == "fused")
            for s in comparison.standings
        ]
        ends = [end for mark in marks for end in (mark.interval.low, mark.interval.high)]
        title = f"{score.task}, {score.metric.replace('_', ' ')}, {score.questions:,} questions"
        pictures.append(
            (title, interval_plot(marks, _direction(score.higher_is_better), span=padded(min(ends), max(ends))))
        )
    return [
        heading("Tasks"),
        paragraph(
            "One metric per task (exact match and length-normalised accuracy before others). Lines are "
            "95\N{NO-BREAK SPACE}% intervals of each model alone: Wilson’s for shares, else from the standard error."
        ),
        table(["model", *[score.task for score in first]], rows),
        panels(pictures),
    ]


def _calibration(comparison: Comparison) -> list[Html]:
    rows = [
        row(s.name, f"{s.calibration_error:.4f}", class_="strong" if s.role == "fused" else "")
        for s in comparison.standings
        if s.calibration_error is not None
    ]
    if not rows:
        return []
    return [
        heading("Calibration"),
        paragraph(
            "Expected calibration error of the likeliest token over the held-out text, 15 bins, lower is better. Each "
            "model has its own tokens: compare those of one tokenizer."
        ),
        table(["model", "calibration error"], rows),
    ]


def _points(difference: Interval) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.estimate:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")


def _direction(higher_is_better: bool) -> str:
    return "higher is better" if higher_is_better else "lower is better"
