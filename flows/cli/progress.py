"""How a run's events are shown: bars on a terminal, one line per computed step elsewhere, JSON lines for machines."""

import json
import re
import sys
import threading
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from tasks.running.progress import Event, listening

_COUNTER = re.compile(r" (\d+)/(\d+)$")


@dataclass
class Stage:
    """The shards that share a label (`extract neox 003/012` -> `extract neox`), and how far they are."""

    name: str
    total: int
    ended: set[str] = field(default_factory=set)
    cached: int = 0
    seconds: float = 0.0
    work: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # of shards under way

    @property
    def done(self) -> float:
        """Shards that ended, those under way counted by their share."""
        return len(self.ended) + sum(done / total for done, total, _ in self.work.values() if total)

    @property
    def is_complete(self) -> bool:
        """Whether every shard has ended."""
        return len(self.ended) >= self.total


@dataclass
class Tally:
    """What a run has done so far; fed with events from any thread."""

    stages: dict[str, Stage] = field(default_factory=dict)
    cached: int = 0
    computed: int = 0
    failed: int = 0

    def add(self, event: Event) -> Stage:
        """Counts the event; the stage that it belongs to."""
        counter = _COUNTER.search(event.label)
        name = event.label if counter is None else event.label[: counter.start()]
        stage = self.stages.setdefault(name, Stage(name, total=int(counter[2]) if counter else 1))
        if event.state == "work":
            stage.work[event.label] = (event.done, event.total, event.unit)
            return stage
        if event.state in ("cached", "computed", "failed"):
            stage.work.pop(event.label, None)
        self.failed += event.state == "failed"
        if event.state in ("cached", "computed") and event.label not in stage.ended:
            stage.ended.add(event.label)
            stage.seconds += event.seconds
            stage.cached += event.state == "cached"
            self.cached += event.state == "cached"
            self.computed += event.state == "computed"
        return stage

    def sentence(self) -> str:
        """`37 cached, 12 computed`, failures only where there are any."""
        counts = [f"{self.cached} cached", f"{self.computed} computed"]
        return ", ".join(counts + [f"{self.failed} failed attempts"] * bool(self.failed))


class Display:
    """Shows events while its block runs. The base shows nothing."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._lock = threading.Lock()
        self._listening = listening(self._hear)

    def __enter__(self) -> Self:
        self._listening.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.__exit__(kind, error, trace)

    def _hear(self, event: Event) -> None:
        with self._lock:
            self.show(event, self.tally.add(event))

    def show(self, event: Event, stage: Stage) -> None:
        """Called with every event, one at a time."""


class Lines(Display):
    """One line for each step that was computed, waits or failed."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def show(self, event: Event, stage: Stage) -> None:
        """Prints a line for what took time or went wrong."""
        match event.state:
            case "computed":
                text = f"computed {event.label} {event.seconds:.1f} s"
            case "waiting" | "failed":
                text = f"{event.state} {event.label}: {' '.join(event.message.split())}"
            case _:
                return
        print(text, file=self.stream, flush=True)


class JsonLines(Display):
    """One JSON object for each thing that happened, work under way excepted."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def show(self, event: Event, stage: Stage) -> None:
        """Prints the event with the fields that it has."""
        if event.state == "work":
            return
        fields = {name: value for name, value in asdict(event).items() if value and name != "state"}
        print(json.dumps({"event": event.state, **fields}), file=self.stream, flush=True)


class Bars(Display):
    """One bar per stage under way; a stage that ended leaves a line, stages that were all cached leave none."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Share(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._progress.__exit__(kind, error, trace)

    def show(self, event: Event, stage: Stage) -> None:
        """Moves the stage's bar, or ends it with a line."""
        if event.state in ("waiting", "failed"):
            self.console.print(Text(f"{event.state} {event.label}: {' '.join(event.message.split())}", style="yellow"))
        if event.state == "cached" and stage.name not in self._bars and not stage.is_complete:
            return  # a stage gets its bar when something in it is computed
        if stage.is_complete:
            self._end(stage)
            return
        if stage.name not in self._bars:
            self._bars[stage.name] = self._progress.add_task(stage.name, total=stage.total)
        self._progress.update(self._bars[stage.name], completed=stage.done, doing=_doing(stage))

    def _end(self, stage: Stage) -> None:
        bar = self._bars.pop(stage.name, None)
        if bar is None:
            return
        self._progress.remove_task(bar)
        shards = f", {stage.total} shards" if stage.total > 1 else ""
        cached = f", {stage.cached} cached" if stage.cached else ""
        self.console.print(
            Text.assemble(("✓ ", "green"), stage.name, (f"  {stage.seconds:.1f} s{shards}{cached}", "dim"))
        )


class _Share(ProgressColumn):
    """`3/12` shards, or how far the only one is."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("doing", "")), style="dim")


def _doing(stage: Stage) -> str:
    if stage.total > 1:
        return f"{len(stage.ended)}/{stage.total}"
    for done, total, unit in stage.work.values():
        return f"{done:,}/{total:,} {unit}"
    return ""


def choose_display(*, as_json: bool) -> Display:
    """JSON lines on stdout if asked for; else bars where stderr is a terminal, and lines where it is not."""
    if as_json:
        return JsonLines(sys.stdout)
    console = Console(stderr=True, markup=False, emoji=False)
    return Bars(console) if console.is_terminal and not console.is_dumb_terminal else Lines(sys.stderr)
