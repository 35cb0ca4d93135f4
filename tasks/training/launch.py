"""Starting the training's process or processes, hearing them, and saying in words how they ended."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts import Runtime
from tasks.running.child import kill_all, read_record
from tasks.running.devices import count_workers, showing_only
from tasks.running.stopping import check_stopped, when_stopped
from tasks.runtime import TrainingRuntime
from tasks.storage.store import open_store
from tasks.training.failures import MEMORY_WAYS, TrainingFailed
from tasks.training.spec import TrainingJob

_CHILD = "tasks.training.child"
_KILLED = re.compile(r"exitcode\s*:\s*-9\b")  # as torchrun reports one of its processes


def check_execution(how: TrainingRuntime, has_adapter: bool) -> None:
    """Raises `ValueError` for trackers or configurations that aren't there, before anything is started."""
    for tracker in how.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(
                f"runtime.training.trackers: expected the package {tracker}, found none; pip install {tracker}"
            )
    if how.accelerate_config is None:
        return
    if not Path(how.accelerate_config).is_file():
        raise ValueError(
            f"runtime.training.accelerate_config: expected a file, found none at {how.accelerate_config}; "
            "write one with `accelerate config`"
        )
    if has_adapter:
        raise ValueError(
            "training.adapter: expected whole weights on every process, found an accelerate configuration, which may "
            "shard them; use runtime.training.processes alone, or no adapter"
        )


def run_child(job: TrainingJob, devices: Sequence[str]) -> Generator[dict[str, Any], None, None]:  # Any: parsed JSON
    """The child's records, the last one with facts or an error.

    Raises `TrainingFailed` when it was killed for memory or by the time limit, and `RuntimeError` with its last
    words when it ended otherwise without a model.
    """
    with tempfile.TemporaryDirectory() as folder:
        description, words = Path(folder, "job.json"), Path(folder, "stderr")
        description.write_text(job.model_dump_json())
        with words.open("wb") as stderr:
            child = subprocess.Popen(
                _command(job.runtime.training, description),
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(job, devices),
            )
        last: dict[str, Any] = {}
        with child, _time_limit(child, job.runtime.training.timeout_seconds) as ran_out:
            try:
                with when_stopped(lambda: kill_all(child)):
                    for line in child.stdout or ():
                        if (record := read_record(line)) is not None:
                            last = record
                            yield record
                    code = child.wait()
            finally:
                kill_all(child)
        check_stopped()
        if not {"facts", "error"} & last.keys():
            raise _explain(code, words.read_text(errors="replace"), last, job.runtime.training, ran_out.is_set())


def _command(how: TrainingRuntime, description: Path) -> list[str]:
    module = ["-m", _CHILD, str(description)]
    if how.accelerate_config is not None:
        count = ["--num_processes", str(how.processes)] if how.processes > 1 else []
        launcher = ["-m", "accelerate.commands.launch", "--config_file", how.accelerate_config, *count]
        return [sys.executable, *launcher, *module]
    if how.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        return [sys.executable, *launcher, "--nproc-per-node", str(how.processes), *module]
    return [sys.executable, *module]


def _environment(job: TrainingJob, devices: Sequence[str]) -> dict[str, str]:
    runtime, how = job.runtime, job.runtime.training
    workers = count_workers(runtime.max_workers, runtime.device)
    threads = max(1, (os.cpu_count() or 1) // (workers * how.processes))
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONSAFEPATH": "1",  # not the working directory's modules; launchers hand it on
        "TENSORBOARD_LOGGING_DIR": str(_log_folder(runtime, job.address)),
    }
    return {**os.environ, **settings, **showing_only(devices, os.environ)}


def _log_folder(runtime: Runtime, address: str) -> Path:
    """Where the event files go: not into the artifact, whose bytes don't depend on the clock."""
    store = open_store(runtime)
    home = Path(store.base) if store.is_local else store.cache
    return Path(runtime.training.log_dir or home / "tensorboard").expanduser() / address.split("/")[-1][:12]


@contextlib.contextmanager
def _time_limit(child: "subprocess.Popen[bytes]", seconds: float | None) -> Iterator[threading.Event]:
    """Kills the child after so many seconds, and says so by the event."""
    ran_out = threading.Event()

    def end() -> None:
        ran_out.set()
        kill_all(child)

    timer = threading.Timer(seconds or 0.0, end)
    if seconds is not None:
        timer.start()
    try:
        yield ran_out
    finally:
        timer.cancel()


def _explain(code: int, words: str, last: dict[str, Any], how: TrainingRuntime, ran_out: bool) -> Exception:
    reached = f"at step {last['done']} of {last['total']}" if last else "before the first step"
    again = "the same command goes on from the last checkpoint" if how.checkpoint_seconds is not None else ""
    if ran_out:
        return TrainingFailed(
            f"training: expected to end within {how.timeout_seconds:g} seconds, found it {reached}; raise "
            f"runtime.training.timeout_seconds; {again}".rstrip("; ")
        )
    if code == -9 or _KILLED.search(words):
        return TrainingFailed(
            f"training: the process was killed {reached} (exit -9), most likely because the machine ran out of memory; "
            f"{MEMORY_WAYS}; {again}".rstrip("; ")
        )
    tail = words.strip()[-2000:]
    return RuntimeError(f"training: the child ended without a model (exit code {code}); {tail or 'it said nothing'}")
