"""What the terminal shows: a plan, a comparison, sizes."""

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flows.plan import Plan
    from fusion_core.metrics import Interval
    from tasks.library.garbage import Garbage
    from tasks.preflight.findings import Inspection, ScoreFindings
    from tasks.report import Comparison

_ROLES = {"source": "", "target": "target before", "baseline": "baseline", "fused": "fused"}


def print_result(renderable: RenderableType) -> None:
    """Prints to stdout; not narrower than its tables need where stdout is no terminal."""
    console = Console(markup=False, emoji=False)  # names may look like markup
    if not console.is_terminal:
        console.width = 160
    console.print(renderable)


def plan_table(plan: "Plan", expected: int) -> RenderableType:
    """Per step how many artifacts are there and how many are missing, and what can't be counted yet."""
    table = make_table("step", "cached", "to compute", "on disk")
    for row in plan.steps:
        table.add_row(row.step, str(row.cached), _highlighted(row.to_compute), show_bytes(row.cached_bytes))
    table.add_section()
    missing = len(plan.missing)
    on_disk = sum(row.cached_bytes for row in plan.steps)
    table.add_row("all", str(len(plan.entries) - missing), _highlighted(missing), show_bytes(on_disk))
    notes = [Text(f"about {show_bytes(expected)} to write")] if expected else []
    notes += [Text(f"shards of {label}: known once the corpus is built") for label in plan.unbuilt]
    return Group(table, *notes)


def comparison_table(comparison: "Comparison") -> RenderableType:
    """Bits per byte of every model, then what the fused one gained on each of its rivals."""
    domains = [domain.name for domain in comparison.domains]
    table = make_table("bits per byte", "", *domains, "mean", "95 % interval", text_columns=2)
    best = {i: min(s.domains[i].estimate for s in comparison.standings) for i in range(len(domains))}
    for standing in comparison.standings:
        cells = [score_cell(d.estimate, best[i]) for i, d in enumerate(standing.domains)]
        mean = Text(f"{standing.mean.estimate:.3f}", style="bold")
        style = "bold" if standing.role == "fused" else ""
        table.add_row(
            Text(standing.name, style=style), _role(standing.role, standing.name), *cells, mean, _between(standing.mean)
        )
    conduct = _conduct(comparison)
    if not comparison.differences:
        return Group(table, *conduct)
    name = comparison.fused.name
    gains = make_table(f"{name} against", *domains, "mean", "95 % interval")
    for difference in comparison.differences:
        cells = [Text(_percent(d.estimate)) for d in difference.domains]
        mean = percent_cell(difference.mean)
        low, high = _percent(difference.mean.low), _percent(difference.mean.high)
        gains.add_row(difference.rival, *cells, mean, f"{low} .. {high}")
    return Group(table, Text(), gains, Text(f"below zero: {name} needs fewer bits", style="dim"), *conduct)


def _conduct(comparison: "Comparison") -> list[RenderableType]:
    """Scores on tasks with their intervals, calibration, and the line of the smoke gate; nothing unless measured."""
    from tasks.report.conduct import gate_line

    found: list[RenderableType] = []
    first, fused = comparison.standings[0], comparison.fused
    tasks = [f"{score.task} ({score.metric})" for score in first.scores]
    sure = ["calibration error"] if any(s.calibration_error is not None for s in comparison.standings) else []
    if tasks or sure:
        table = make_table("measure", *sure, *tasks)
        for s in comparison.standings:
            error = "–" if s.calibration_error is None else f"{s.calibration_error:.4f}"
            scores = [f"{score.value:.3f} ({_between(score.interval)})" for score in s.scores]
            table.add_row(Text(s.name, style="bold" if s is fused else ""), *([error] if sure else []), *scores)
        found += [Text(), table]
    if fused.gate is not None:
        style = "green" if fused.gate.passed else "red"
        found += [Text(), Text(gate_line(fused), style=style), *[Text(f"  {reason}") for reason in fused.gate.reasons]]
    return found


def garbage_table(garbage: "list[Garbage]", *, deleted: bool) -> RenderableType:
    """What may go or went, by path, and how much it is."""
    table = make_table("kind", "path", "bytes", text_columns=2)
    for item in garbage:
        table.add_row(item.kind, item.path, show_bytes(item.bytes))
    total = f"{len(garbage)} things, {show_bytes(sum(item.bytes for item in garbage))}"
    note = f"removed {total}" if deleted else f"{total} may go; --delete removes them"
    return Group(table, Text(note)) if garbage else Text("nothing to remove")


def show_bytes(count: int) -> str:
    """A size in the largest decimal unit that keeps it above one: 3.1 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def make_table(first: str, *others: str, text_columns: int = 1) -> Table:
    """An empty table without lines; the columns after the first `text_columns` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for number, name in enumerate((first, *others)):
        table.add_column(name, justify="left" if number < text_columns else "right", no_wrap=True)
    return table


def _highlighted(count: int) -> Text:
    return Text(str(count), style="yellow" if count else "dim")


def _role(role: str, name: str) -> Text:
    shown = _ROLES[role]
    return Text("" if shown == name else shown, style="dim")


def score_cell(value: float, best: float) -> Text:
    """Bits per byte; the best is green."""
    return Text(f"{value:.3f}", style="green" if value == best else "")


def _between(interval: "Interval") -> str:
    return f"{interval.low:.3f} .. {interval.high:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def percent_cell(difference: "Interval") -> Text:
    """A relative difference: green where it is certainly fewer bits, red where it is certainly more."""
    style = "green" if difference.high < 0 else "red" if difference.low > 0 else ""
    return Text(_percent(difference.estimate), style=style)


def inspection_tables(found: "Inspection") -> RenderableType:
    """Where the rows of each source meet the target's, what a sample showed, what a run takes, and the verdicts."""
    kinds = list(dict.fromkeys(kind for pair in found.pairs.values() for kind in pair.kinds))
    rows = make_table(f"rows of {found.target} met by", "common", "inside", "absent", *kinds, "shared", "multi-piece")
    for name, pair in found.pairs.items():
        every = pair.rows
        met = [f"{pair.kinds[kind].common_share:.2f}" if kind in pair.kinds else "-" for kind in kinds]
        parts = [f"{part / max(every.total, 1):.2f}" for part in (every.common, every.bridged, every.absent)]
        overlap = (pair.shared_bytes / max(pair.read_bytes, 1), pair.multi_piece / max(pair.source_tokens, 1))
        rows.add_row(name, *parts, *met, *[f"{share:.2f}" for share in overlap])
    notes = [Text(f"{what}: {need}") for what, need in found.needs.items()]
    notes += [Text(f"{name} wasn't run: {reason}", style="dim") for name, reason in found.not_run.items()]
    notes += [Text(f"warning: {warning}", style="yellow") for warning in found.warnings]
    verdicts = [
        Text(f"{name}: {verdict.choice}: {'; '.join(verdict.reasons)}", style=_VERDICTS[verdict.choice])
        for name, verdict in found.verdicts.items()
    ]
    scores = [] if found.scores is None else [_score_table(found.scores), Text()]
    return Group(rows, Text(), *scores, *notes, Text(), *verdicts)


_VERDICTS = {"fuse": "green", "fuse with a warning": "yellow", "leave out": "red"}


def _score_table(scores: "ScoreFindings") -> RenderableType:
    domains = list(dict.fromkeys(domain for model in scores.models.values() for domain in model.bits_per_byte))
    table = make_table("bits per byte", *domains, "kept", "label kept", "truncation")
    for name, model in scores.models.items():
        bits = [f"{model.bits_per_byte[domain]:.3f}" if domain in model.bits_per_byte else "-" for domain in domains]
        lost = "none" if model.truncation_bits is None else f"{model.truncation_bits:.3f}"
        table.add_row(name, *bits, f"{model.kept:.2f}", f"{model.label_kept:.2f}", lost)
    if not scores.documents_compared:
        return table
    differ, compared = scores.documents_chosen_differently, scores.documents_compared
    return Group(table, Text(f"nats per token would choose another teacher in {differ} of {compared} documents"))
