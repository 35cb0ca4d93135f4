"""Lanes: drills held side by side, each in a process of its own, whose lines are read as they come.

Most drills wait more than they compute. A lane is a fork, so that it may fork in turn: it begins without threads.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.drills.outcome import Outcome, Skip
from tests.drills.workload import Fork, fork


@dataclass
class Lane:
    """A process that holds drills, and how many of its lines have been read."""

    name: str
    process: Fork
    found: Path
    log: Path
    read: int = 0

    def news(self) -> Iterator[Outcome | Skip]:
        """What it has found since the last look."""
        lines = self.found.read_text().splitlines() if self.found.exists() else []
        yield from map(_read, lines[self.read :])
        self.read = len(lines)

    def failure(self) -> Iterator[Outcome]:
        """That it broke, where an ended one did."""
        if self.process.code:
            said = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            yield Outcome(self.name, wrong=1, remark=f"ended with {self.process.code}: {''.join(said)}")


def begin_lane(name: str, hold: Callable[[], Iterable[Outcome | Skip]], folder: Path) -> Lane:
    """A lane that holds what `hold` yields."""
    found, log = folder / f"{name}.jsonl", folder / f"{name}.log"

    def write() -> None:
        for outcome in hold():
            with found.open("a") as stream:
                stream.write(json.dumps({"kind": type(outcome).__name__, **asdict(outcome)}) + "\n")

    return Lane(name, fork(write, log), found, log)


def watch(lanes: list[Lane]) -> Iterator[Outcome | Skip]:
    """What the lanes find, as it comes, until all have ended."""
    while lanes:
        ended = [lane for lane in lanes if lane.process.poll() is not None]  # before the look at what they wrote
        for lane in lanes:
            yield from lane.news()
        for lane in ended:
            yield from lane.failure()
        lanes = [lane for lane in lanes if lane not in ended]
        time.sleep(0.1)


def _read(line: str) -> Outcome | Skip:
    fields = json.loads(line)
    return Skip(**fields) if fields.pop("kind") == "Skip" else Outcome(**fields)
