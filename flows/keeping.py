"""What a run still needs is noted in the store while it goes on: garbage collection leaves it alone."""

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from prefect.runtime import flow_run

from tasks.artifacts import Ref, Runtime
from tasks.library.lineage import RunRecord, record_run
from tasks.step import Planned, is_planning
from tasks.storage.store import open_store

_told: ContextVar[Callable[[Ref], None] | None] = ContextVar("told", default=None)


def tell_corpus(corpus: Ref) -> None:
    """Tells the keeper of this run that a corpus is there: now its shards, and what is made of each, have names."""
    told = _told.get()
    if told is not None and not is_planning():
        told(corpus)


class Keeper:
    """The record of one run in the store: what was asked for, and what is kept for it."""

    def __init__(self, name: str, asked: dict[str, Any], runtime: Runtime) -> None:  # Any: the JSON of what was asked
        self.name, self.asked, self.runtime = name, asked, runtime
        self.run_id = flow_run.get_id() or uuid.uuid4().hex
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.refs: list[Ref] = []

    def keep(self, refs: Iterable[Ref]) -> None:
        """Keeps these, and no longer what was kept before: at the end, what came out."""
        self.refs = list(refs)
        record = RunRecord.model_validate(
            {"name": self.name, "started_at": self.started_at, "recipe": self.asked, "refs": self.refs}
        )
        record_run(open_store(self.runtime), record, run_id=self.run_id)

    def add(self, refs: Iterable[Ref]) -> None:
        """Keeps these, too."""
        self.keep([*self.refs, *refs])

    @contextlib.contextmanager
    def planned(self, plan: Callable[[], Sequence[Planned]]) -> Iterator[Sequence[Planned]]:
        """Keeps what `plan` names while the block runs, which begins with the plan as it is known then.

        A plan has no shards of a corpus that isn't built, so it is made anew with each that has come since the last.
        """
        entries = plan()
        self.keep(entry.ref for entry in entries)
        known = {entry.ref.address for entry in entries if entry.cached_bytes is not None}

        def replan(corpus: Ref) -> None:
            if corpus.address in known:
                return
            renewed = plan()
            self.keep(entry.ref for entry in renewed)
            known.update({corpus.address, *(entry.ref.address for entry in renewed if entry.cached_bytes is not None)})

        token = _told.set(replan)
        try:
            yield entries
        finally:
            _told.reset(token)
