"""What a benchmark measures: a row of the table, and how its numbers come about.

A machine's speed changes from minute to minute, so what is compared runs in turns, and the shortest of several times
counts. Memory is measured in a process of its own, where nothing that was freed before hides what is taken now.
"""

import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

MIB = 2**20
_SECONDS = {"s": 1.0, "ms": 1e-3}

Action = Callable[[], object]
Prepare = Callable[[], Action]
"""Makes the inputs and returns what is to be measured. For memory it is sent to another process, so it must be a
function of a module, or a `partial` of one."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    seconds, twin_seconds: of ours and of the twin (a library, or the slow definition) in the same run.
    peak_mib: the most memory that ours took beyond its inputs, results included; NaN where it wasn't measured.
    target: the conditions ours has to meet, each `<= NUMBER UNIT`: x (times the twin's seconds), ms, s, MiB, or B
        (bytes per token).
    bytes_per_token: in the store, all in; NaN where nothing is stored.
    """

    name: str
    seconds: float
    twin: str
    twin_seconds: float
    peak_mib: float
    target: str
    bytes_per_token: float = math.nan

    @property
    def ratio(self) -> float:
        """Our time in times the twin's."""
        return self.seconds / self.twin_seconds

    @property
    def is_met(self) -> bool | None:
        """Whether every condition of the target holds; None where it names none."""
        conditions = re.findall(r"<= ?([\d.]+) ?(x|ms|s|MiB|B)\b", self.target)
        return all(self._value_in(unit) <= float(limit) for limit, unit in conditions) if conditions else None

    def _value_in(self, unit: str) -> float:
        if unit == "MiB":
            return self.peak_mib
        if unit == "B":
            return self.bytes_per_token
        return self.ratio if unit == "x" else self.seconds / _SECONDS[unit]


@dataclass(frozen=True)
class Skip:
    """A comparison that this machine can't make, and why."""

    name: str
    reason: str


def race(ours: Action, twin: Action, repeats: int = 5, device: str = "cpu") -> tuple[float, float]:
    """The least seconds of each of two actions, run in turns `repeats` times after one run that isn't counted."""
    best = [float("inf")] * 2
    for repeat in range(repeats + 1):
        for place, action in enumerate((ours, twin)):
            elapsed = time_once(action, device)
            best[place] = min(best[place], elapsed) if repeat else best[place]
    return best[0], best[1]


def time_once(action: Action, device: str = "cpu") -> float:
    """Seconds until the action's results are there, on the device too."""
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_peak(prepare: Prepare, device: str = "cpu") -> float:
    """MiB that the action takes at most beyond its inputs: resident memory, or what torch allocates on a GPU.

    NaN where the system doesn't say (resident memory needs Linux). The action runs once, in a new process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(partial(_peak_here, prepare, device, torch.get_num_threads())).result()


def _peak_here(prepare: Prepare, device: str, num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    action = prepare()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident
        before = _resident_peak()
        action()
        return (_resident_peak() - before) / MIB
    except OSError:
        return float("nan")


def _resident_peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
