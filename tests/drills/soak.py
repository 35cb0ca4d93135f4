"""Soak: two thousand shards in one process of a flow, whose memory, files and threads must stay flat."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from prefect import flow

from tasks.artifacts import Runtime, TextsRef
from tasks.running.progress import Event, listening
from tasks.step import Output, settle, step
from tests.drills.outcome import Outcome
from tests.drills.workload import WORKERS, Workload, fork

SHARDS = 2000
WARM_SHARE = 0.1  # until then, what a process loads once is being loaded
GROWTH_BYTES_PER_SHARD = 40_000  # Prefect keeps a future and a state of each task until its flow ends
GROWTH_HANDLES = 16
_FAILED: set[int] = set()  # what has failed once, in this process


@step(version=1)
def shard(number: int, *, runtime: Runtime, out: Output) -> TextsRef:
    """A file that follows from the number; one in fifty fails at first, as the world does."""
    if number % 50 == 0 and number not in _FAILED:
        _FAILED.add(number)
        raise ConnectionError("the world")
    (out.dir / "data").write_bytes(number.to_bytes(4, "big") * 5_000)
    out.progress(1, 1, "shards")
    return out.ref(TextsRef)


def drill(workload: Workload, short: bool) -> Iterator[Outcome]:
    """One line."""
    count, found = SHARDS // 40 if short else SHARDS, workload.folder / "soak.json"
    outcome = Outcome(f"soak: {count} shards in one process", limit=1200.0)
    clock = time.monotonic()
    code = fork(lambda: run(workload.folder / "soaked", count, found), workload.log).wait(outcome.limit)
    outcome.recovered(time.monotonic() - clock)
    outcome.blame([f"ended with {code}: {workload.last_words()}"] if code else [])
    if not code:
        grown = json.loads(found.read_text())
        outcome.trials, outcome.faults, outcome.lost = grown["made"], grown["retried"], count - grown["made"]
        outcome.remark = f"memory +{grown['memory'] / 1e6:.0f} MB, handles +{grown['handles']}, after the first tenth"
        outcome.wrong += grown["memory"] > max(count * GROWTH_BYTES_PER_SHARD, 2e7)
        outcome.wrong += grown["handles"] > GROWTH_HANDLES
    yield outcome


def run(root: Path, count: int, found: Path) -> int:
    """Runs the flow in this process and writes how much it grew."""
    process, retried = psutil.Process(), 0
    samples: list[tuple[int, int]] = []

    def hear(event: Event) -> None:
        nonlocal retried
        retried += event.state == "failed"
        if event.state == "computed":
            samples.append((process.memory_info().rss, process.num_fds() + process.num_threads()))

    @flow(name="soak")
    def soak(runtime: Runtime) -> Any:  # Any: refs
        from flows.execution import executing

        with executing(runtime):
            return settle(shard.submit_each([(n,) for n in range(count)], runtime=runtime, label="shard"), "shards")

    with listening(hear):
        made = soak(Runtime(root=str(root), max_workers=WORKERS, lease_seconds=5.0))
    warm, end = samples[: int(count * WARM_SHARE)], samples[-max(1, count // 20) :]
    growth = [max(s[i] for s in end) - max(s[i] for s in warm) for i in (0, 1)]
    report = {"made": sum(ref is not None for ref in made), "retried": retried}
    found.write_text(json.dumps(report | {"memory": growth[0], "handles": growth[1]}))
    return 0
