"""Which devices a step has for itself: one queue over all that this machine shows, for its threads and processes.

An accelerator belongs to one step at a time; a CPU is shared. A reservation is a lock on a file, which the kernel
takes back when its process dies, so nothing has to be cleared up and no coordinator runs.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tasks.running.stopping import check_stopped

_LOOK_AGAIN_SECONDS = 0.2


def visible_devices(asked: str) -> list[str]:
    """The devices that a runtime's `device` means.

    `auto` is every CUDA device, else MPS, else the CPU; `cuda` every CUDA device; otherwise those named, by commas.
    Raises `ValueError` for one that isn't here.
    """
    import torch

    if asked in ("auto", "cuda") and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if asked == "auto":
        return ["mps" if torch.backends.mps.is_available() else "cpu"]
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"device: expected one of this machine's devices, found {name!r}; try cpu or auto"
            ) from error
    return names


def count_workers(asked: int | None, device: str) -> int:
    """How many steps are in work at once: as asked, or one for each device and one that needs none beside them."""
    return asked or len(visible_devices(device)) + 1


def showing_only(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What a child's environment needs to see these CUDA devices alone; the Trainer would take the first, or all.

    environment: the parent's, whose own CUDA_VISIBLE_DEVICES says what `cuda:0` is. Empty for other devices.
    """
    indices = [int(name.removeprefix("cuda:")) for name in names if name.startswith("cuda:")]
    if not indices:
        return {}
    shown = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": ",".join(shown[i] if shown != [""] else str(i) for i in indices)}


@contextlib.contextmanager
def reserve_devices(
    names: Sequence[str], count: int = 1, folder: Path | None = None, on_wait: Callable[[], None] = lambda: None
) -> Iterator[list[str]]:
    """`count` of the named devices, in their order, for nobody else while the block runs; waits until they are free.

    A CPU or MPS isn't waited for, and for a `count` of 0 nothing is.
    folder: where the locks lie; one for all of a user's runs by default.
    on_wait: called once if it has to wait.
    Raises `ValueError` for more than there are, and `Stopped` when the run is told to end while it waits.
    """
    exclusive = [name for name in dict.fromkeys(names) if name.startswith("cuda")]
    if not exclusive:
        yield list(names[: min(count, 1)])
        return
    if count > len(exclusive):
        raise ValueError(
            f"runtime.training.processes: expected at most one for each of {len(exclusive)} devices, found {count}; "
            "name more in runtime.device, or take fewer processes"
        )
    folder = folder or Path(tempfile.gettempdir(), f"llm-fuse-devices-{os.getuid()}")
    _make_private(folder)
    is_first = True
    with contextlib.ExitStack() as held:
        while len(taken := _take(exclusive, count, folder, held)) < count:
            held.close()  # holding some while waiting for others could block two steps for good
            if is_first:
                on_wait()
                is_first = False
            check_stopped()
            time.sleep(_LOOK_AGAIN_SECONDS)
        yield taken


def _take(names: Sequence[str], count: int, folder: Path, held: contextlib.ExitStack) -> list[str]:
    """Those of the devices, at most `count`, whose locks could be had at once."""
    taken: list[str] = []
    for name in names if count else ():
        # a description of its own: threads exclude each other, too
        lock = os.open(folder / _identity(name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        held.callback(_release, lock)
        taken.append(name)
        if len(taken) == count:
            break
    return taken


def _release(lock: int) -> None:
    fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone leaves it to children forked meanwhile
    os.close(lock)


def _make_private(folder: Path) -> None:
    """Makes the folder, of this user alone. Raises `ValueError` where somebody else could have put something there."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ValueError(
            f"devices: expected a folder of mode 0700 and user {os.getuid()} for their locks, found {folder} with "
            f"{stat.filemode(found.st_mode)} and user {found.st_uid}; remove it, or set TMPDIR to a folder of your own"
        )


def _identity(name: str) -> str:
    """What the device is called by all processes, whatever CUDA_VISIBLE_DEVICES shows each as its first."""
    import torch

    if not torch.cuda.is_available():
        return name
    return str(torch.cuda.get_device_properties(torch.device(name)).uuid)
