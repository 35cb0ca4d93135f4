"""A study's page: the table, a picture per question, and what was asked for."""

import yaml

from fusion_core.metrics import Interval
from tasks.report.arms import ArmResult, ArmTable, Gain
from tasks.report.arms_text import describe_regressions, explain, name_of, seeds_of, verdict
from tasks.report.charts import Mark, interval_plot, padded
from tasks.report.comparison import percent
from tasks.report.markup import Html, element, heading, panels, paragraph, row, table
from tasks.report.page import render_document


def render_study(found: ArmTable, study: dict[str, object]) -> str:
    """The whole page, a function of its arguments alone."""
    return render_document(
        found.title,
        paragraph(verdict(found), class_="verdict"),
        *[part for group, arms in found.groups for part in _table(group, arms, found)],
        paragraph(explain(found)),
        *_pictures(found),
        *_regressions(found),
        *_batches(found),
        heading("What was asked for"),
        element("pre", yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=110)),
    )


def _table(group: str, arms: tuple[ArmResult, ...], found: ArmTable) -> list[Html]:
    against, reverse = f"against {found.rival}", f"{found.main} against it"
    header = ["", *[d.name for d in found.domains], "mean", against, "by seed", reverse, "gap closed"]
    rows = [
        row(
            name_of(arm, found),
            *[f"{interval.estimate:.3f}" for interval in (*arm.domains, arm.mean)],
            _cell(arm.against_rival),
            seeds_of(arm),
            _cell(arm.main_against),
            percent(arm.recovered[-1]).lstrip("+") if arm.recovered else "",
            class_="strong" if arm.name == found.main else "",
        )
        for arm in arms
    ]
    return [heading(group), table(header, rows)]


def _cell(gain: Gain | None) -> str:
    if gain is None:
        return ""
    return f"{percent(gain.mean.estimate)} ({percent(gain.mean.low)} to {percent(gain.mean.high)})"


def _pictures(found: ArmTable) -> list[Html]:
    pictures = []
    for group, arms in found.groups:
        marks = [_mark(arm, arm.against_rival, found) for arm in arms if arm.against_rival and arm.kind != "read"]
        if marks:
            ends = [end for mark in marks for end in (mark.interval.low, mark.interval.high)]
            span = padded(min(0, *ends), max(0, *ends))
            pictures.append((group, interval_plot(marks, "% difference in bits per byte", span=span, zero=True)))
    if not pictures:
        return []
    note = paragraph("Mean over domains, each on its own scale; left of the dashed line the arm is better.")
    return [heading(f"Against {found.rival}"), note, panels(pictures)]


def _mark(arm: ArmResult, gain: Gain, found: ArmTable) -> Mark:
    scaled = Interval(100 * gain.mean.estimate, 100 * gain.mean.low, 100 * gain.mean.high)
    return Mark(arm.name, scaled, percent(gain.mean.estimate), strong=arm.name == found.main)


def _regressions(found: ArmTable) -> list[Html]:
    lines = describe_regressions(found)
    said = [element("ul", *[element("li", line) for line in lines])] if lines else []
    return [heading(f"Worse than {found.rival}"), *(said or [paragraph("No trained arm, in no domain.")])]


def _batches(found: ArmTable) -> list[Html]:
    trained = [(arm, arm.training) for arm in found.arms if arm.training is not None]
    if not trained:
        return []
    rows = [
        row(
            arm.name,
            f"{training.lm_weight:g}",
            f"{training.steps:,}",
            f"{training.sequences:,}",
            f"{training.tokens:,}",
            {True: "the same", False: "others", None: "not compared"}[training.same_batches],
            " ".join(digest[:12] for digest in training.batches_sha256),
        )
        for arm, training in trained
    ]
    header = ["", "lm_weight", "steps", "sequences", "tokens", "batches", "SHA-256 by seed"]
    note = f"The same: the batches that {found.rival} saw, in the same order, by their SHA-256."
    return [heading("Equal data, equal steps"), paragraph(note), table(header, rows)]
