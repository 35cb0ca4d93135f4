"""The page: one HTML file that explains a comparison, without the network. Its one script sorts tables."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import yaml

from fusion_core.metrics import Interval
from tasks.quantities import format_bytes
from tasks.report.charts import Mark, interval_plot, padded
from tasks.report.comparison import Comparison, percent
from tasks.report.conduct import describe_conduct
from tasks.report.evidence import Evidence
from tasks.report.markup import Html, element, heading, panels, paragraph, row, table
from tasks.report.origins import describe_origins

_STYLE, _SCRIPT = (Path(__file__).with_name(name) for name in ("style.css", "sort.js"))


def render_page(comparison: Comparison, evidence: Evidence, recipe: dict[str, object]) -> str:
    """The whole page. It is a function of its arguments alone: the same artifacts give the same bytes."""
    return render_document(
        comparison.title,
        *_dates(evidence),
        *_verdict(comparison),
        *_standings(comparison),
        *_differences(comparison),
        *_domains(comparison),
        *describe_conduct(comparison),
        *describe_origins(comparison, evidence),
        heading("Recipe"),
        element("pre", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)),
    )


def render_document(title: str, *parts: Html) -> str:
    """A page of the report's looks that needs no network; a browser runs no script in it but ours, by its digest."""
    script = _SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("title", title),
        element("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )
    body = element("body", element("h1", title), *parts, element("script", Html(script)))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _dates(evidence: Evidence) -> list[Html]:
    starts = sorted(manifest.started_at for manifest in evidence.manifests.values())
    if not starts:
        return []
    first, last = (start.replace("T", " ").removesuffix("+00:00") for start in (starts[0], starts[-1]))
    return [paragraph(f"{len(starts):,} artifacts, computed {first} to {last} UTC", class_="meta")]


def _verdict(comparison: Comparison) -> list[Html]:
    verdict = paragraph(comparison.verdict, class_="verdict")
    if not comparison.differences:
        return [verdict]
    if not comparison.regressions:
        return [verdict, paragraph("In no domain is it worse than the target or any other training of it.")]
    lines = [
        f"{r.domain or 'mean over domains'}: {percent(r.difference.estimate)} ({percent(r.difference.low)} to "
        f"{percent(r.difference.high)}) against {r.rival}" + ("" if r.certain else "; the interval holds zero")
        for r in comparison.regressions
    ]
    return [verdict, paragraph("It is worse here:"), element("ul", *[element("li", line) for line in lines])]


def _standings(comparison: Comparison) -> list[Html]:
    rows = [
        row(
            s.name,
            *[f"{interval.estimate:.3f}" for interval in (*s.domains, s.mean)],
            f"{s.mean.low:.3f}–{s.mean.high:.3f}",
            note="" if s.role == s.name else s.role,
            class_="strong" if s.role == "fused" else "",
        )
        for s in comparison.standings
    ]
    amount = "; ".join(f"{d.name}: {d.documents:,} documents, {format_bytes(d.bytes)}" for d in comparison.domains)
    return [
        heading("Held-out text"),
        paragraph(f"Bits per byte, lower is better: what each model pays for the held-out text ({amount})."),
        table(["model", *[d.name for d in comparison.domains], "mean", "95\N{NO-BREAK SPACE}% interval"], rows),
    ]


def _differences(comparison: Comparison) -> list[Html]:
    if not comparison.differences:
        return []
    pictures = []
    for difference in comparison.differences:
        marks = [_percent_mark("mean", difference.mean, strong=True)]
        pairs = zip(comparison.domains, difference.domains, strict=True)
        marks += [_percent_mark(domain.name, interval) for domain, interval in pairs]
        ends = [end for mark in marks for end in (mark.interval.low, mark.interval.high)]
        span = padded(min(0, *ends), max(0, *ends))
        plot = interval_plot(marks, "% difference in bits per byte", span=span, zero=True)
        pictures.append((f"against {difference.rival}", plot))
    return [
        heading("The fused model against its rivals"),
        paragraph(
            "Relative difference, each on its own scale; left of the dashed line the fused model is better. Lines are "
            f"95\N{NO-BREAK SPACE}% intervals over {comparison.resamples:,} paired bootstrap resamples of each "
            f"domain’s documents (seed {comparison.seed})."
        ),
        panels(pictures),
    ]


def _domains(comparison: Comparison) -> list[Html]:
    every = [end for s in comparison.standings for i in s.domains for end in (i.low, i.high)]
    span = padded(min(every), max(every))

    def plot(intervals: Sequence[Interval]) -> Html:
        marks = [
            Mark(s.name, interval, f"{interval.estimate:.3f}", strong=s.role == "fused")
            for s, interval in zip(comparison.standings, intervals, strict=True)
        ]
        return interval_plot(marks, "bits per byte", span=span)

    return [
        heading("Bits per byte by domain"),
        paragraph("The same scale everywhere; lines are 95\N{NO-BREAK SPACE}% intervals of each model alone."),
        panels(
            [(d.name, plot([s.domains[n] for s in comparison.standings])) for n, d in enumerate(comparison.domains)]
        ),
    ]


def _percent_mark(label: str, interval: Interval, *, strong: bool = False) -> Mark:
    scaled = Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high)
    return Mark(label, scaled, percent(interval.estimate), strong)
