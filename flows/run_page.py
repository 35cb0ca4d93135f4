"""The page of a run in Prefect's UI: artifacts that appear as it goes on, and what came of it at the end.

All of it is for people to look at, so nothing here fails or delays a run: a server that can't be reached costs one
line in the log. A server that lives only as long as the run gets nothing.
"""

import contextlib
import contextvars
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from flows.run_tables import Grid
from tasks.artifacts import Manifest
from tasks.running.planning import Planned, in_parallel
from tasks.running.progress import Event, listening
from tasks.secrets import redact
from tasks.storage.store import Store

EVERY_SECONDS = 5.0
LONG_SECONDS = 10.0
"""Steps that take longer show how far they are."""
_LAST_SECONDS = 15.0


@dataclass(frozen=True)
class Note:
    """An artifact of the page that is written once, at the run's end. kind: `markdown`, or `table` with JSON data."""

    name: str
    kind: str
    data: str
    description: str


Summarize = Callable[[Sequence[Planned], dict[str, Manifest]], Iterable[Note]]
"""What came of a run, from all that it needed and the manifests of what is there, by address."""


@contextlib.contextmanager
def run_page(
    name: str,
    grids: Sequence[Grid],
    store: Store,
    plan: Callable[[], Sequence[Planned]],
    summarize: Summarize,
) -> Iterator[None]:
    """Shows the running flow's page: the grids while the block goes on, and at its end what `summarize` makes of it."""
    run_id = flow_run.get_id()
    if run_id is None or PREFECT_API_URL.value() is None:
        yield
        return
    page = _Page(UUID(run_id), re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run", grids)
    with page.publishing(), listening(page.hear):
        try:
            yield
        except Exception:
            page.conclude(store, plan, summarize)
            raise
        page.conclude(store, plan, summarize)


@dataclass
class Work:
    """A step under way. `since` and `first` are when its first progress was told, and what it was."""

    label: str
    task_run_id: UUID | None
    since: float
    first: int
    done: int = 0
    total: int = 0
    unit: str = ""

    @classmethod
    def begin(cls, event: Event) -> Self:
        """The work that an event tells of first, in the thread of its step."""
        context = TaskRunContext.get()
        task_run_id = None if context is None else context.task_run.id
        return cls(event.label, task_run_id, time.monotonic(), event.done, event.done, event.total, event.unit)

    def is_continued_by(self, event: Event) -> bool:
        """Whether the event goes on with this work: a new attempt, or a new phase, begins anew."""
        return (event.total, event.unit) == (self.total, self.unit) and event.done >= self.done

    def sentence(self, now: float) -> str:
        """`extract neox 003/064: 41,200 of 98,000 tokens, 1,230 tokens/s, 46 s left`."""
        text = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        seconds = now - self.since
        if self.done <= self.first or seconds <= 0:
            return text
        rate = (self.done - self.first) / seconds
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        left = f", {_duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
        return f"{text}, {speed} {self.unit}/s{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass
class _Page:
    """What is known of a run, and the thread that brings it to the server."""

    flow_run_id: UUID
    slug: str
    grids: Sequence[Grid]
    works: dict[str, Work] = field(default_factory=dict)
    ids: dict[str, UUID] = field(default_factory=dict)  # of artifacts, by our own names
    notes: list[Note] = field(default_factory=list)
    is_changed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: Event) -> None:
        """Takes up an event, in the thread of its step."""
        if event.state == "waiting":
            get_run_logger().info("%s: %s", event.label, event.message)
        with self.lock:
            for grid in self.grids:
                grid.add(event)
            self.is_changed = True
            if event.state != "work":
                if (work := self.works.get(event.label)) is not None and event.state == "computed":
                    work.done = work.total
                elif event.state in ("started", "failed"):
                    self.works.pop(event.label, None)
                return
            work = self.works.get(event.label)
            if work is None or not work.is_continued_by(event):
                work = self.works[event.label] = Work.begin(event)
            work.done = event.done

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Publishes every few seconds while the block runs, and once more at its end."""
        context = contextvars.copy_context()  # which server, which logger
        thread = threading.Thread(target=context.run, args=(self._publish_until_ended,), name="run-page", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ended.set()
            thread.join(_LAST_SECONDS)

    def conclude(self, store: Store, plan: Callable[[], Sequence[Planned]], summarize: Summarize) -> None:
        """Reads what came of the run."""
        with _never_failing("the run's page is not complete"):
            entries = plan()
            found = in_parallel(store.manifest, [entry.ref for entry in entries])
            manifests = {m.ref.address: m for m in found if m is not None}
            with self.lock:
                for grid in self.grids:
                    grid.complete(entries, manifests, str(self.flow_run_id))
                self.is_changed = True
            self.notes.extend(summarize(entries, manifests))

    def _publish_until_ended(self) -> None:
        with _never_failing("the run's page can't be shown"), get_client(sync_client=True) as client:
            while not self.ended.wait(EVERY_SECONDS):
                with contextlib.suppress(Exception):  # the next one brings all of it
                    self._publish_live(client)
            self._publish_last(client)

    def _publish_last(self, client: SyncPrefectClient) -> None:
        """What changed since, and each note, whatever became of the others. Raises the first one's error at the end."""
        parts: list[Callable[[SyncPrefectClient], None]] = [self._publish_live]
        parts += [partial(self._publish_note, note) for note in self.notes]
        errors = []
        for publish in parts:
            try:
                publish(client)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _publish_note(self, note: Note, client: SyncPrefectClient) -> None:
        key = f"{self.slug}-{note.name}"
        self._publish(client, note.name, note.kind, note.data, key=key, description=note.description)

    def _publish_live(self, client: SyncPrefectClient) -> None:
        with self.lock:
            tables = [(g.name, g.rows(), g.description) for g in self.grids] if self.is_changed else []
            self.is_changed = False
            now = time.monotonic()
            works = [
                (w.label, w.sentence(now), 100.0 * w.done / w.total, w.task_run_id)
                for w in self.works.values()
                if w.total and (w.label in self.ids or now - w.since > LONG_SECONDS)
            ]
            finished = [label for label, w in self.works.items() if w.done >= w.total]
        try:
            for name, rows, meaning in tables:
                if rows:
                    key = f"{self.slug}-{name}"
                    self._publish(client, name, "table", json.dumps(rows), key=key, description=meaning)
        except Exception:
            with self.lock:
                self.is_changed = True  # for the next time, which may come without another event
            raise
        for label, sentence, share, task_run_id in works:
            self._publish(client, label, "progress", share, description=sentence, task_run_id=task_run_id)
        with self.lock:
            for label in finished:
                self.works.pop(label, None)

    def _publish(self, client: SyncPrefectClient, name: str, kind: str, data: str | float, **more: Any) -> None:
        """Creates the artifact, or brings it up to date."""
        if name in self.ids:
            changed = {"data": data, **{key: value for key, value in more.items() if key == "description"}}
            client.update_artifact(self.ids[name], ArtifactUpdate(**changed))
        else:
            made = ArtifactCreate(type=kind, data=data, flow_run_id=self.flow_run_id, **more)
            self.ids[name] = client.create_artifact(made).id


@contextlib.contextmanager
def _never_failing(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is, it is not worth a run
        get_run_logger().warning("%s: %s: %s", what, type(error).__name__, redact(str(error)))
