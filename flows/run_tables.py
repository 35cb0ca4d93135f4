"""What a run's page shows, as tables and markdown: shards, quality per source, the comparison, what came from what."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

from tasks.artifacts import Manifest
from tasks.report import Comparison, lineage_graph
from tasks.report.comparison import percent
from tasks.report.evidence import Manifests, read_coverage, read_wins
from tasks.report.markup import element, markdown_text
from tasks.running.planning import Planned
from tasks.running.progress import Event

_COUNTER = re.compile(r" (\d+)/\d+$")
_STYLE = Path(lineage_graph.__file__).with_name("style.css")


def stage_of(label: str) -> str:
    """The label without the shard's number: `extract neox 003/012` -> `extract neox`."""
    return _COUNTER.sub("", label)


@dataclass
class Cell:
    """What has become of one shard in one stage."""

    state: str = ""
    seconds: float = 0.0
    failures: int = 0
    message: str = ""
    quarantined: int = 0

    def __str__(self) -> str:
        """`retried, computed 1.2 s, 2 quarantined`."""
        parts = []
        if self.failures and self.state != "failed":
            parts.append("retried")
        match self.state:
            case "computed":
                parts.append(f"computed {self.seconds:.1f} s")
            case "failed":
                parts.append(f"failed: {self.message}")
            case _:
                parts.append(self.state)
        if self.quarantined:
            parts.append(f"{self.quarantined} quarantined")
        return ", ".join(part for part in parts if part)


def shard_of(label: str) -> tuple[str, str] | None:
    """Stage and shard: `extract neox 003/012` -> (`extract neox`, `003`). None for a step that has no shards."""
    counter = _COUNTER.search(label)
    return None if counter is None else (stage_of(label), counter[1])


@dataclass
class Grid:
    """What has become of each step of a run, as a table; fed with events while it goes on, with manifests at its end.

    place: column and row of a step by its label, or None where it isn't shown here. rows_are: the first column's head.
    """

    name: str = "shards"
    description: str = "What has become of each shard, stage by stage."
    rows_are: str = "shard"
    place: Callable[[str], tuple[str, str] | None] = shard_of
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)  # by column, then by row
    order: Sequence[str] = ()

    def add(self, event: Event) -> None:
        """Notes an event; those of steps that have no place here are passed over."""
        cell = self._cell(event.label)
        if cell is None:
            return
        match event.state:
            case "waiting":
                cell.state = "waiting"
            case "started" | "work":
                share = f" {event.done / event.total:.0%}" if event.total else ""
                cell.state = f"running{share}"
            case "cached":
                cell.state = "cached"
            case "computed":
                cell.state, cell.seconds = "computed", event.seconds
            case "failed":
                cell.state, cell.failures = "failed", cell.failures + 1
                cell.message = shorten(event.message, 60, placeholder=" ...")  # more pushes other stages off the screen

    def complete(self, entries: Iterable[Planned], manifests: Mapping[str, Manifest], flow_run_id: str) -> None:
        """Adds what only the store knows: quarantined documents, and what other processes have done or left undone."""
        entries = list(entries)
        places = [self.place(entry.label) for entry in entries]
        self.order = list(dict.fromkeys(place[0] for place in places if place is not None))
        for entry in entries:
            cell, manifest = self._cell(entry.label), manifests.get(entry.ref.address)
            if cell is None:
                continue
            if manifest is None:
                cell.state = "failed" if cell.failures else "not computed"
                continue
            cell.quarantined = len(manifest.facts.get("quarantined", ()))
            if cell.state not in ("cached", "computed"):
                cell.state = "computed" if manifest.flow_run_id == flow_run_id else "cached"
                cell.seconds = manifest.seconds

    def rows(self) -> list[dict[str, str]]:
        """The table as Prefect's artifacts take it."""
        columns = sorted(
            self.cells, key=lambda column: self.order.index(column) if column in self.order else len(self.order)
        )
        rows = sorted({row for column in self.cells.values() for row in column})
        blank = Cell()
        return [
            {self.rows_are: row, **{column: str(self.cells[column].get(row, blank)) for column in columns}}
            for row in rows
        ]

    def _cell(self, label: str) -> Cell | None:
        place = self.place(label)
        return None if place is None else self.cells.setdefault(place[0], {}).setdefault(place[1], Cell())


def quality_table(
    target: str, sources: Sequence[str], entries: Iterable[Planned], manifests: Manifests
) -> list[dict[str, str]]:
    """One row per model that reads: how much of it, what was kept, what arrived at the target, and what it won."""
    stages: dict[str, list[Planned]] = {}
    for entry in entries:
        stages.setdefault(stage_of(entry.label), []).append(entry)
    aligned = [[entry.ref for entry in stages.get(f"align {source}", ())] for source in sources]
    coverage = {found.source: found for found in read_coverage(sources, aligned, manifests)}  # type: ignore[arg-type]
    wins = read_wins([target, *sources], [entry.ref for entry in stages.get("fuse", ())], manifests)  # type: ignore[misc]
    won = dict(zip(wins.candidates, wins.total.rows_won, strict=True)) if wins else {}
    rows = []
    for name in (target, *sources):
        if f"extract {name}" not in stages:
            continue
        read = [m.facts for e in stages.get(f"extract {name}", ()) if (m := manifests.get(e.ref.address)) is not None]
        tokens = sum(facts["tokens"] for facts in read)
        kept = sum(facts["kept_mass"] * facts["tokens"] for facts in read)
        found = coverage.get(name)
        rows.append(
            {
                "model": name,
                "documents": f"{sum(facts['documents'] for facts in read):,}",
                "quarantined": f"{sum(len(facts['quarantined']) for facts in read):,}",
                "tokens": f"{tokens:,}",
                "kept mass": f"{kept / tokens:.1%}" if tokens else "",
                "target's rows covered": f"{found.present / max(found.rows, 1):.1%}" if found else "",
                "kept after alignment": f"{found.kept:.1%}" if found else "",
                "rows won": f"{won[name] / max(sum(won.values()), 1):.1%}" if name in won else "",
            }
        )
    return rows


def comparison_markdown(comparison: Comparison, place: str) -> str:
    """The verdict, bits per byte of every model, what the fused one gained, and where the report lies."""
    domains = [markdown_text(domain.name) for domain in comparison.domains]
    standings = [
        [markdown_text(s.name), s.role, *(f"{d.estimate:.3f}" for d in s.domains), f"**{s.mean.estimate:.3f}**"]
        for s in comparison.standings
    ]
    gains = [
        [markdown_text(d.rival), *(percent(i.estimate) for i in d.domains), percent(d.mean.estimate),
         f"{percent(d.mean.low)} .. {percent(d.mean.high)}"]
        for d in comparison.differences
    ]  # fmt: skip
    parts = [markdown_text(comparison.verdict), _table(["bits per byte", "", *domains, "mean"], standings)]
    if gains:
        parts.append(
            _table([f"{markdown_text(comparison.fused.name)} against", *domains, "mean", "95 % interval"], gains)
        )
    return "\n\n".join([*parts, f"The report as one HTML page, for a browser: `{place}`"])


def lineage_markdown(manifests: Manifests, marked: str) -> str:
    """What was made from what, shards taken together, as a picture; the artifact at the address `marked` stands out.

    A picture, because only the newer of Prefect's two UIs draws mermaid graphs.
    """
    drawn = lineage_graph.draw_lineage(manifests, {}, marked=marked)
    size = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', drawn)
    assert size is not None
    rules = element("style", _STYLE.read_text(encoding="utf-8") + "svg.lineage { background: var(--paper) }")
    names = {"xmlns": "http://www.w3.org/2000/svg", "class_": "lineage"}
    picture = element("svg", rules, drawn, **names, width=float(size[1]), height=float(size[2]))
    data = base64.b64encode(picture.encode()).decode()
    return (
        f"![what was made from what](data:image/svg+xml;base64,{data})\n\n`llm-fuse lineage {marked}` tells the rest."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
