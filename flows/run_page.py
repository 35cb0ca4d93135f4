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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from flows.recipe import Recipe
from flows.run_tables import Grid, comparison_markdown, lineage_markdown, quality_table
from tasks.artifacts import ReportRef
from tasks.planning import Planned, in_parallel
from tasks.progress import Event, listening
from tasks.report import PAGE, read_comparison
from tasks.store import Store

EVERY_SECONDS = 5.0
LONG_SECONDS = 10.0
"""Steps that take longer show how far they are."""
_LAST_SECONDS = 15.0
MEANINGS = {
    "shards": "What has become of each shard, stage by stage.",
    "quality": "What each model read and kept, and how much of it the target can use.",
    "lineage": "What was made from what.",
    "comparison": "The fused model next to its sources, its target and the baselines.",
}
"""What a run's artifacts are, by their names."""


@contextlib.contextmanager
def run_page(recipe: Recipe, store: Store, plan: Callable[[], Sequence[Planned]]) -> Iterator[None]:
    """Shows the running flow's page: the shards while the block goes on, and at its end what `plan` then finds."""
    run_id = flow_run.get_id()
    if run_id is None or PREFECT_API_URL.value() is None:
        yield
        return
    page = _Page(UUID(run_id), re.sub(r"[^a-z0-9]+", "-", recipe.name.lower()).strip("-") or "run")
    with page.publishing(), listening(page.hear):
        try:
            yield
        except Exception:
            page.conclude(recipe, store, plan)
            raise
        page.conclude(recipe, store, plan)


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

    def sentence(self, now: float) -> str:
        """`extract neox 003/064: 41,200 of 98,000 tokens, 1,230 tokens/s, 46 s left`."""
        text = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        seconds = now - self.since
        if self.done <= self.first or seconds <= 0:
            return text
        rate = (self.done - self.first) / seconds
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{text}, {speed} {self.unit}/s, {_duration((self.total - self.done) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass
class _Page:
    """What is known of a run, and the thread that brings it to the server."""

    flow_run_id: UUID
    slug: str
    grid: Grid = field(default_factory=Grid)
    works: dict[str, Work] = field(default_factory=dict)
    ids: dict[str, UUID] = field(default_factory=dict)  # of artifacts, by our own names
    summary: list[tuple[str, str, str]] = field(default_factory=list)  # name, type, data
    is_changed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: Event) -> None:
        """Takes up an event, in the thread of its step."""
        with self.lock:
            self.grid.add(event)
            self.is_changed = True
            if event.state != "work":
                if (work := self.works.get(event.label)) is not None and event.state == "computed":
                    work.done = work.total
                return
            if event.label not in self.works:
                context = TaskRunContext.get()
                task_run_id = None if context is None else context.task_run.id
                self.works[event.label] = Work(event.label, task_run_id, time.monotonic(), event.done)
            work = self.works[event.label]
            work.done, work.total, work.unit = event.done, event.total, event.unit

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

    def conclude(self, recipe: Recipe, store: Store, plan: Callable[[], Sequence[Planned]]) -> None:
        """Reads what came of the run."""
        with _never_failing("the run's page is not complete"):
            entries = plan()
            found = in_parallel(store.manifest, [entry.ref for entry in entries])
            manifests = {m.ref.address: m for m in found if m is not None}
            sources = [source.name for source in recipe.sources]
            with self.lock:
                self.grid.complete(entries, manifests, str(self.flow_run_id))
                self.is_changed = True
            marked = entries[-1].ref.address
            self.summary.append(("lineage", "markdown", lineage_markdown(manifests, marked)))
            quality = quality_table(recipe.target.name, sources, entries, manifests)
            self.summary.append(("quality", "table", json.dumps(quality)))
            for ref in (entry.ref for entry in entries if isinstance(entry.ref, ReportRef)):
                if (manifest := manifests.get(ref.address)) is not None:
                    place = f"{store.base if store.is_local else store.root}/{ref.address}/{manifest.owner}/{PAGE}"
                    text = comparison_markdown(read_comparison(store, ref), place)
                    self.summary.append(("comparison", "markdown", text))

    def _publish_until_ended(self) -> None:
        with _never_failing("the run's page can't be shown"), get_client(sync_client=True) as client:
            while not self.ended.wait(EVERY_SECONDS):
                with contextlib.suppress(Exception):  # the next one brings all of it
                    self._publish_live(client)
            self._publish_live(client)
            for name, kind, data in self.summary:
                self._publish(client, name, kind, data, key=f"{self.slug}-{name}", description=MEANINGS[name])

    def _publish_live(self, client: SyncPrefectClient) -> None:
        with self.lock:
            rows, is_changed, self.is_changed = self.grid.rows(), self.is_changed, False
            now = time.monotonic()
            works = [
                (w.label, w.sentence(now), 100.0 * w.done / w.total, w.task_run_id)
                for w in self.works.values()
                if w.total and (w.label in self.ids or now - w.since > LONG_SECONDS)
            ]
            finished = [label for label, w in self.works.items() if w.done >= w.total]
        if is_changed and rows:
            key, meaning = f"{self.slug}-shards", MEANINGS["shards"]
            self._publish(client, "shards", "table", json.dumps(rows), key=key, description=meaning)
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
        get_run_logger().warning("%s: %s: %s", what, type(error).__name__, error)
