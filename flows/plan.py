"""What a run would do: which artifacts are there, which have to be computed, and about how many bytes they take."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from flows.fuse import fuse_models
from flows.recipe import Recipe
from tasks.artifacts import CorpusRef, Runtime
from tasks.step import Planned, planning

_COUNTER = re.compile(r" \d+/\d+$")


@dataclass(frozen=True)
class StepCount:
    """One row of a plan."""

    step: str
    cached: int
    to_compute: int
    cached_bytes: int


@dataclass(frozen=True)
class Plan:
    """Every artifact that a run needs, each once, in the order in which the flow asks for it."""

    entries: tuple[Planned, ...]

    @classmethod
    def of(cls, entries: Iterable[Planned]) -> "Plan":
        """The plan of what a flow asked for: of each artifact the first, many parts of a flow may ask for it."""
        first: dict[str, Planned] = {}
        for entry in entries:
            first.setdefault(entry.ref.address, entry)
        return cls(tuple(first.values()))

    @property
    def missing(self) -> tuple[Planned, ...]:
        """What has to be computed."""
        return tuple(entry for entry in self.entries if entry.cached_bytes is None)

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """Labels of the corpora whose shards, and so what is made from them, can't be counted yet."""
        return tuple(entry.label for entry in self.missing if isinstance(entry.ref, CorpusRef))

    @property
    def steps(self) -> tuple[StepCount, ...]:
        """One row per step, in the order of first use."""
        names = list(dict.fromkeys(entry.step for entry in self.entries))
        return tuple(_count(name, [e for e in self.entries if e.step == name]) for name in names)

    def select(self, what: str) -> tuple[Planned, ...]:
        """The artifacts of a step (`extract`), a label (`extract neox 003/012`) or its beginning (`extract neox`).

        Raises `ValueError` naming what there is when nothing fits.
        """
        chosen = tuple(e for e in self.entries if e.step == what or f"{e.label} ".startswith(f"{what} "))
        if not chosen:
            labels = dict.fromkeys(_COUNTER.sub("", entry.label) for entry in self.entries)
            raise ValueError(
                f"expected a step or a label of this recipe, found {what!r}; there are {', '.join(labels)}"
            )
        return chosen


def plan_recipe(recipe: Recipe, runtime: Runtime) -> Plan:
    """The plan of `fuse_models(recipe, runtime)`; computes nothing and writes nothing.

    Raises `ValueError` or `StoreError` for what would stop the run at once: a missing model folder, text that
    isn't there, a store that can't be reached.
    """
    with planning() as entries:
        fuse_models.fn(recipe, runtime)
    return Plan.of(entries)


def _count(step: str, entries: list[Planned]) -> StepCount:
    cached = [entry.cached_bytes for entry in entries if entry.cached_bytes is not None]
    return StepCount(step, len(cached), len(entries) - len(cached), sum(cached))
