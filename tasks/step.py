"""`@step`: a plain function becomes a cached, claimed, retryable, plannable unit of a flow.

    @step(version=1)
    def fuse(target: ScoredRef, aligned: list[AlignedRef], spec: MinCE, *, runtime: Runtime, out: Output) -> FusedRef:

- `fuse.fn(target, aligned, spec, runtime=runtime)` computes or finds the artifact, without Prefect.
- `fuse.submit(target, aligned, spec, runtime=runtime, label="fuse all")` does so as a Prefect task of the
  running flow and returns a future, which other steps take as an argument.
- `fuse.submit_each(calls, runtime=runtime, label="fuse")` does so for many at once (`fuse 003/064`): what is
  cached is looked up in parallel and shown as one task run, only what is missing gets a task run of its own.
- inside `with planning() as plan:` both compute nothing: they return refs and note what is cached.

The fingerprint hashes the step's name and version, its semantic arguments (everything but the runtime) and
what `pin` found the world to be. An argument at its default isn't hashed, so a step may gain one and still find what
it made before; changing a default changes the meaning. Prefect's own result cache is not used: the manifest alone
decides what is a hit, so a deleted artifact is a miss and an unreachable store is an error, never a silent
recomputation.
"""

import contextlib
import functools
import importlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, get_type_hints

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.states import Completed
from prefect.tasks import Task, exponential_backoff

from tasks.artifacts import Manifest, Ref, Runtime, StoreError, canonical_json, fingerprint_of, refs_in
from tasks.models.trust import trusting_code
from tasks.running.environment import environment
from tasks.running.job import Job, Output, find_or_claim
from tasks.running.planning import (
    Done,
    Future,
    Planned,
    ShardsFailed,
    Submitted,
    current_plan,
    in_parallel,
    is_planning,
    planning,
    resolve,
    settle,
    submitted_in,
    unwrap,
    wrap,
)
from tasks.running.progress import Event, tell
from tasks.running.slots import device_place
from tasks.running.transient import find_full_disk, is_transient
from tasks.secrets import redact_error
from tasks.storage.store import open_store

__all__ = ["Future", "Output", "Planned", "ShardsFailed", "Step", "is_planning", "planning", "settle", "step"]

R = TypeVar("R", bound=Ref)
OnDevice = bool | Callable[..., int | None]


@dataclass(frozen=True)
class _Call:
    """What a step is asked for: its semantic arguments, futures among them, and the name it has for people."""

    arguments: dict[str, Any]  # Any: specs, refs, futures and plain data
    label: str


class Step(Generic[R]):
    """A function with an identity. See the module's docstring for how to call it."""

    def __init__(
        self,
        body: Callable[..., R],
        version: int,
        retries: int,
        on_device: OnDevice,
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
        self._shown: Task[..., Any] = Task(
            _show_cached, name=self.name, task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """By name: a cluster's workers import the step, with its code and its Prefect task, as every process does."""
        return _step_named, (self.body.__module__, self.body.__qualname__)

    def fn(self, *args: Any, runtime: Runtime, label: str = "", **kwargs: Any) -> R:
        """The artifact's ref, from the store or computed now, without Prefect."""
        return self._obtain(self._semantic(args, kwargs), runtime, label or self.name)[0]

    def submit(self, *args: Any, runtime: Runtime, label: str = "", **kwargs: Any) -> Future:
        """A future of the artifact's ref. Arguments may be futures of other steps, also inside lists."""
        call = _Call(self._semantic(args, kwargs), label or self.name)
        return self._submit([call], runtime, call.label)[0]

    def submit_each(self, calls: Iterable[Sequence[Any]], *, runtime: Runtime, label: str) -> list[Future]:
        """A future per call, in order, labelled `label 003/064`. A call is the step's semantic arguments.

        All that is cached appears as one task run (`label: 62 of 64 cached`), so that a run whose shards are all
        there costs the server one record and not thousands.
        """
        listed = [self._semantic(tuple(args), {}) for args in calls]
        numbered = [_Call(call, f"{label} {n:03}/{len(listed):03}") for n, call in enumerate(listed, 1)]
        return self._submit(numbered, runtime, label)

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
            arguments = {name: unwrap(value) for name, value in self._semantic(args, kwargs).items()}
            ref, was_cached = self._obtain(arguments, runtime, label)
            if was_cached:
                return Completed(name="Cached", message=f"found {ref.address}", data=ref)
            return ref

        run.__name__, run.__doc__ = self.name, self.body.__doc__
        kept = [p for n, p in self.signature.parameters.items() if n != "out"]
        label = inspect.Parameter("label", inspect.Parameter.KEYWORD_ONLY, annotation=str)
        run.__signature__ = inspect.Signature([*kept, label])  # type: ignore[attr-defined]
        return run

    def _submit(self, calls: list[_Call], runtime: Runtime, label: str) -> list[Future]:
        entries = current_plan()
        if entries is not None:
            planned = in_parallel(lambda call: self._plan(call, runtime), calls)
            entries += planned
            return [Done(entry.ref) for entry in planned]
        found = in_parallel(lambda call: self._look(call, runtime), calls)
        hits = [(call, ref) for call, ref in zip(calls, found, strict=True) if ref is not None]
        for call, _ in hits:
            tell(Event(self.name, call.label, "cached"))
        if hits:
            name = label if len(calls) == 1 else f"{label}: {len(hits)} of {len(calls)} cached"
            self._shown([ref for _, ref in hits], label=name)  # type: ignore[unused-coroutine]
        return [
            self._start(call, runtime) if ref is None else Done(ref) for call, ref in zip(calls, found, strict=True)
        ]

    def _plan(self, call: _Call, runtime: Runtime) -> Planned:
        ref, manifest = self._find(call, runtime)
        return Planned(self.name, call.label, ref, None if manifest is None else manifest.total_bytes)

    def _look(self, call: _Call, runtime: Runtime) -> Ref | None:
        """The ref of an artifact that is there; None where it isn't, or nobody can say yet."""
        if any(submitted_in(call.arguments)):
            return None
        with contextlib.suppress(Exception):  # it comes again in the task, where it is retried and shown
            ref, manifest = self._find(call, runtime)
            return None if manifest is None else ref
        return None

    def _find(self, call: _Call, runtime: Runtime) -> tuple[Ref, Manifest | None]:
        fingerprint, _ = self._identify(resolve(call.arguments), runtime)
        ref: Ref = self.returns(step=self.name, fingerprint=fingerprint)
        manifest = open_store(runtime).manifest(ref)
        return (ref if manifest is None else manifest.ref), manifest

    def _start(self, call: _Call, runtime: Runtime) -> Future:
        named = self._task.with_options(name=call.label)  # until it starts Prefect has no other name for it
        arguments = {name: wrap(value) for name, value in call.arguments.items()}
        future = named.submit(**arguments, runtime=runtime, label=call.label)
        return Submitted(future, tuple(submitted_in(call.arguments)))

    def _obtain(self, arguments: dict[str, Any], runtime: Runtime, label: str) -> tuple[R, bool]:
        """The artifact's ref and whether it was there already."""
        fingerprint, pins = self._identify(arguments, runtime)
        ref = self.returns(step=self.name, fingerprint=fingerprint)
        job = Job(open_store(runtime), ref, arguments, pins, runtime, label)
        try:
            return self._find_or_compute(job)
        except BaseException as error:
            redact_error(error)  # it goes into Prefect's records, and into logs
            job.tell("failed", message=f"{type(error).__name__}: {error}")
            raise

    def _find_or_compute(self, job: Job) -> tuple[R, bool]:
        with find_or_claim(job, functools.partial(self._place, job)) as found:
            if isinstance(found, Runtime):
                return self._compute(replace(job, runtime=found)), False
        job.tell("cached")
        return found.ref, True  # type: ignore[return-value]

    def _place(self, job: Job) -> contextlib.AbstractContextManager[Runtime]:
        """Where the body may compute: the job's runtime with the devices that it has for itself."""
        if not self.on_device:
            return contextlib.nullcontext(job.runtime)
        count = self.on_device(**job.arguments, runtime=job.runtime) if callable(self.on_device) else 1
        return device_place(job.runtime, count, lambda reason: job.tell("waiting", message=reason))

    def _compute(self, job: Job) -> R:
        job.tell("started")
        folder = job.store.scratch(job.ref.address, job.owner)
        out = Output(folder, self.name, job.ref.fingerprint, job.label, job.pins)
        try:
            made, manifest = self._make(job, out)
        except BaseException as error:
            with contextlib.suppress(Exception):  # the body's error is the one to see
                job.store.discard(folder, job.ref.address, job.owner)
            if (line := find_full_disk(error)) is not None:  # some libraries raise what looks like a bug
                raise StoreError(
                    f"{job.label}: expected space below {folder.parent}, found the disk full ({line}); free some and "
                    "run again, what is done is kept"
                ) from error
            raise
        job.store.commit(manifest, folder)
        with contextlib.suppress(Exception):  # clearing up must not fail what is published
            for act in out.afterwards:
                act()
        job.tell("computed", seconds=manifest.seconds)
        return made

    def _make(self, job: Job, out: Output) -> tuple[R, Manifest]:
        """What the body returns and the manifest that will publish it, with all files in the store."""
        started, clock = datetime.now(UTC), time.monotonic()
        with trusting_code(job.runtime.model_code):
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
            files=job.store.upload(out.dir, job.ref.address, job.owner),
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
    *, version: int, retries: int = 3, on_device: OnDevice = False, pin: Callable[..., dict[str, object]] | None = None
) -> Callable[[Callable[..., R]], Step[R]]:
    """Decorates a step's body `(specs and refs, *, runtime, out) -> Ref`.

    version: bumped by hand when the meaning of the result changes; the hash of code never enters.
    retries: how often the world (network, disk, memory of the device) may fail it; bugs and bad input never retry.
    on_device: whether the body takes one of the runtime's devices for itself; or, called as `pin` is, how many it
        takes, None for all. The runtime that the body is called with names them.
    pin: called with the semantic arguments and the runtime; plain data that joins the fingerprint.
    """
    return lambda body: Step(body, version, retries, on_device, pin)


def _step_named(module: str, name: str) -> Any:  # Any: a step
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _show_cached(refs: list[Ref], label: str) -> State[Any]:
    some = ", ".join(str(ref) for ref in refs[:3]) + (", ..." if len(refs) > 3 else "")
    return Completed(name="Cached", message=f"found {some}")


def _should_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def _prefect_ids() -> dict[str, Any]:  # Any: keyword arguments of a manifest
    context = TaskRunContext.get()
    if context is None:
        return {}
    flow_run_id = context.task_run.flow_run_id
    return {"flow_run_id": flow_run_id and str(flow_run_id), "task_run_id": str(context.task_run.id)}
