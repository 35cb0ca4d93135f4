"""`@step`: a plain function becomes a cached, claimed, retryable, plannable unit of a flow.

    @step(version=1)
    def fuse(target: ScoredRef, aligned: list[AlignedRef], spec: MinCE, *, runtime: Runtime, out: Output) -> FusedRef:

- `fuse.fn(target, aligned, spec, runtime=runtime)` computes or finds the artifact, without Prefect.
- `fuse.submit(target, aligned, spec, runtime=runtime, label="fuse 003/064")` does so as a Prefect task of
  the running flow and returns a future, which other steps take as an argument.
- inside `with planning() as plan:` `submit` computes nothing: it returns refs and notes what is cached.

The fingerprint hashes the step's name and version, its semantic arguments (everything but the runtime) and
what `pin` found the world to be. An argument at its default isn't hashed, so a step may gain one and still find what
it made before; changing a default changes the meaning. Prefect's own result cache is not used: the manifest alone
decides what is a hit, so a deleted artifact is a miss and an unreachable store is an error, never a silent
recomputation.
"""

import contextlib
import functools
import inspect
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.states import Completed
from prefect.tasks import Task, exponential_backoff

from tasks.artifacts import Manifest, Ref, Runtime, canonical_json, fingerprint_of, refs_in
from tasks.claims import Claim, Claims
from tasks.environment import environment
from tasks.planning import (
    Done,
    Future,
    Planned,
    ShardsFailed,
    Submitted,
    current_plan,
    is_planning,
    planning,
    resolve,
    settle,
    submitted_in,
)
from tasks.progress import Event, EventState, tell
from tasks.store import Store, open_store
from tasks.transient import is_transient

__all__ = ["Future", "Output", "Planned", "ShardsFailed", "Step", "is_planning", "planning", "settle", "step"]

R = TypeVar("R", bound=Ref)
K = TypeVar("K", bound=Ref)


@dataclass
class Output:
    """What a step's body writes to: a private folder, facts for lineage, and its progress."""

    dir: Path
    step: str
    fingerprint: str
    label: str
    pins: Mapping[str, object] = field(default_factory=dict)  # what the step's `pin` found, as it was hashed
    facts: dict[str, object] = field(default_factory=dict)

    def ref(self, kind: type[K], **fields: object) -> K:
        """The ref that the body returns."""
        return kind.model_validate({"step": self.step, "fingerprint": self.fingerprint, **fields})

    def progress(self, done: int, total: int, unit: str) -> None:
        """Tells how far the step is."""
        tell(Event(self.step, self.label, "work", done=done, total=total, unit=unit))


@dataclass(frozen=True)
class _Job:
    """One attempt to obtain one artifact."""

    store: Store
    ref: Ref
    arguments: dict[str, Any]  # Any: specs, refs and plain data
    pins: dict[str, object]
    runtime: Runtime
    label: str
    owner: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def tell(self, state: EventState, **details: Any) -> None:  # Any: the fields of an event
        tell(Event(self.ref.step, self.label, state, **details))


class Step(Generic[R]):
    """A function with an identity. See the module's docstring for how to call it."""

    def __init__(
        self,
        body: Callable[..., R],
        version: int,
        retries: int,
        on_device: bool,
        pin: Callable[..., dict[str, object]] | None,
    ) -> None:
        functools.update_wrapper(self, body)  # type: ignore[arg-type]
        self.body, self.version, self.on_device, self.pin = body, version, on_device, pin
        self.name = body.__name__
        self.returns: type[R] = get_type_hints(body)["return"]
        self.signature = inspect.signature(body)
        self._task: Task[..., Any] = Task(
            self._as_prefect_task(),
            name=self.name,
            task_run_name="{label}",
            retries=retries,
            retry_delay_seconds=exponential_backoff(backoff_factor=1.0),
            retry_condition_fn=_should_retry,
            cache_policy=NO_CACHE,
            persist_result=False,
        )

    def fn(self, *args: Any, runtime: Runtime, label: str = "", **kwargs: Any) -> R:
        """The artifact's ref, from the store or computed now, without Prefect."""
        return self._obtain(self._semantic(args, kwargs), runtime, label or self.name)[0]

    def submit(self, *args: Any, runtime: Runtime, label: str = "", **kwargs: Any) -> Future:
        """A future of the artifact's ref. Arguments may be futures of other steps, also inside lists."""
        arguments = self._semantic(args, kwargs)
        entries = current_plan()
        if entries is not None:
            return self._planned(resolve(arguments), runtime, label or self.name, entries)
        future = self._task.submit(**resolve(arguments), runtime=runtime, label=label or self.name)
        return Submitted(future, tuple(submitted_in(arguments)))

    def fingerprint(self, *args: Any, runtime: Runtime, **kwargs: Any) -> str:
        """The identity of what these arguments would make."""
        return self._identify(self._semantic(args, kwargs), runtime)[0]

    # ---- inside ------------------------------------------------------------------------------------

    def _semantic(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self.signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        missing = [
            n for n, p in self.signature.parameters.items() if n not in bound.arguments and n not in ("runtime", "out")
        ]
        if missing:
            raise TypeError(f"step {self.name}: missing {', '.join(missing)}")
        return dict(bound.arguments)

    def _identify(self, arguments: dict[str, Any], runtime: Runtime) -> tuple[str, dict[str, object]]:
        pins = self.pin(**arguments, runtime=runtime) if self.pin else {}
        return fingerprint_of(self.name, self.version, self._hashed(arguments), pins), pins

    def _hashed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that aren't at their default, by their stable form: lists and tuples are the same."""
        defaults = {n: p.default for n, p in self.signature.parameters.items() if p.default is not p.empty}
        return {
            name: value
            for name, value in arguments.items()
            if name not in defaults or canonical_json(value) != canonical_json(defaults[name])
        }

    def _as_prefect_task(self) -> Callable[..., Any]:
        def run(*args: Any, runtime: Runtime, label: str, **kwargs: Any) -> Any:
            ref, was_cached = self._obtain(self._semantic(args, kwargs), runtime, label)
            if was_cached:
                return Completed(name="Cached", message=f"found {ref.address}", data=ref)
            return ref

        run.__name__, run.__doc__ = self.name, self.body.__doc__
        kept = [p for n, p in self.signature.parameters.items() if n != "out"]
        label = inspect.Parameter("label", inspect.Parameter.KEYWORD_ONLY, annotation=str)
        run.__signature__ = inspect.Signature([*kept, label])  # type: ignore[attr-defined]
        return run

    def _planned(self, arguments: dict[str, Any], runtime: Runtime, label: str, entries: list[Planned]) -> Future:
        fingerprint, _ = self._identify(arguments, runtime)
        ref: Ref = self.returns(step=self.name, fingerprint=fingerprint)
        manifest = open_store(runtime).manifest(ref)
        if manifest is not None:
            ref = manifest.ref
        entries.append(Planned(self.name, label, ref, None if manifest is None else manifest.total_bytes))
        return Done(ref)

    def _obtain(self, arguments: dict[str, Any], runtime: Runtime, label: str) -> tuple[R, bool]:
        """The artifact's ref and whether it was there already."""
        fingerprint, pins = self._identify(arguments, runtime)
        ref = self.returns(step=self.name, fingerprint=fingerprint)
        job = _Job(open_store(runtime), ref, arguments, pins, runtime, label)
        found = _find_or_claim(job)
        if isinstance(found, Claim):
            with found:
                manifest = job.store.manifest(ref)  # committed between our look and our claim?
                if manifest is None:
                    with _slot(runtime, self.on_device):
                        return self._compute(job), False
        else:
            manifest = found
        job.tell("cached")
        return manifest.ref, True  # type: ignore[return-value]

    def _compute(self, job: _Job) -> R:
        job.tell("started")
        try:
            folder = job.store.scratch(job.ref.address, job.owner)
            try:
                made, manifest = self._make(job, folder)
            except BaseException:
                with contextlib.suppress(Exception):  # the body's error is the one to see
                    job.store.discard(folder, job.ref.address, job.owner)
                raise
            job.store.commit(manifest, folder)
        except BaseException as error:
            job.tell("failed", message=f"{type(error).__name__}: {error}")
            raise
        job.tell("computed", seconds=manifest.seconds)
        return made

    def _make(self, job: _Job, folder: Path) -> tuple[R, Manifest]:
        """What the body returns and the manifest that will publish it, with all files in the store."""
        started, clock = datetime.now(UTC), time.monotonic()
        out = Output(folder, self.name, job.ref.fingerprint, job.label, job.pins)
        made = self.body(**job.arguments, runtime=job.runtime, out=out)
        if not isinstance(made, self.returns) or made.address != job.ref.address:
            raise TypeError(f"step {self.name}: expected `return out.ref({self.returns.__name__})`, found {made!r}")
        manifest = Manifest(
            step=self.name,
            version=self.version,
            fingerprint=job.ref.fingerprint,
            label=job.label,
            ref=made,  # type: ignore[arg-type]
            arguments=json.loads(canonical_json(job.arguments)),
            pins=job.pins,
            inputs=list(refs_in(job.arguments)),  # type: ignore[arg-type]
            files=job.store.upload(folder, job.ref.address, job.owner),
            facts=out.facts,
            owner=job.owner,
            started_at=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
            environment=environment(job.runtime.device),
            **_prefect_ids(),
        )
        manifest.to_json()  # facts that aren't plain JSON are the body's error, before anything is published
        return made, manifest


def step(
    *, version: int, retries: int = 3, on_device: bool = False, pin: Callable[..., dict[str, object]] | None = None
) -> Callable[[Callable[..., R]], Step[R]]:
    """Decorates a step's body `(specs and refs, *, runtime, out) -> Ref`.

    version: bumped by hand when the meaning of the result changes; the hash of code never enters.
    retries: how often the world (network, disk, memory of the device) may fail it; bugs and bad input never retry.
    on_device: whether the body takes one of the runtime's device slots.
    pin: called with the semantic arguments and the runtime; plain data that joins the fingerprint.
    """
    return lambda body: Step(body, version, retries, on_device, pin)


def _should_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def _find_or_claim(job: _Job) -> Manifest | Claim:
    """The artifact's manifest, or the right to make it; waits while another owner lives."""
    inputs = sorted({ref.address for ref in refs_in(job.arguments)})
    claims = Claims(job.store, job.ref.address, job.owner, job.runtime.lease_seconds, inputs)
    told = False
    while (manifest := job.store.manifest(job.ref)) is None:
        claim = claims.acquire()
        if claim is not None:
            return claim
        if not told:
            job.tell("waiting", message="somebody else computes it")
            told = True
        time.sleep(min(1.0, job.runtime.lease_seconds / 10))
    return manifest


@contextlib.contextmanager
def _slot(runtime: Runtime, on_device: bool) -> Iterator[None]:
    if on_device and runtime.device_slots is not None:
        with concurrency(runtime.device_slots, occupy=1, strict=True):
            yield
    else:
        yield


def _prefect_ids() -> dict[str, Any]:  # Any: keyword arguments of a manifest
    context = TaskRunContext.get()
    if context is None:
        return {}
    flow_run_id = context.task_run.flow_run_id
    return {"flow_run_id": flow_run_id and str(flow_run_id), "task_run_id": str(context.task_run.id)}
