"""The queue of a machine's devices."""

import contextlib
import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.running.devices import count_workers, reserve_devices, showing_only, visible_devices
from tasks.running.stopping import Stopped, stoppable

NAMES = ["cuda:0", "cuda:1"]

HOLD = """
import sys, time
from pathlib import Path
from tasks.running.devices import reserve_devices
with reserve_devices(["cuda:0"], folder=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

FORK = """
import os, signal, sys, time
from pathlib import Path
from tasks.running.devices import reserve_devices
with reserve_devices(["cuda:0"], folder=Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
def give_up(*_):
    os.kill(child, signal.SIGKILL)
    sys.exit("it is still held")
signal.signal(signal.SIGALRM, give_up)
signal.alarm(10)
with reserve_devices(["cuda:0"], folder=Path(sys.argv[1])):
    print("free", flush=True)
os.kill(child, signal.SIGKILL)
"""


def test_steps_at_once_never_share_a_device_and_use_all_of_them(tmp_path: Path) -> None:
    inside: set[str] = set()
    used: list[str] = []
    both = threading.Barrier(2)  # two steps must get in together, or it breaks

    def work(number: int) -> None:
        with reserve_devices(NAMES, folder=tmp_path) as (name,):
            assert name not in inside
            inside.add(name)
            used.append(name)
            both.wait(timeout=20)
            inside.discard(name)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert set(used) == set(NAMES)


def test_a_step_that_needs_two_waits_until_both_are_free_and_holds_none_meanwhile(tmp_path: Path) -> None:
    waiting = ThreadPoolExecutor(1)

    def take_both() -> list[str]:
        with reserve_devices(NAMES, 2, tmp_path) as taken:
            return taken

    with reserve_devices(["cuda:0"], folder=tmp_path):
        result = waiting.submit(take_both)
        time.sleep(0.3)
        with reserve_devices(["cuda:1"], folder=tmp_path):  # would hang, did the other keep it while it waits
            assert not result.done()
    assert result.result(timeout=20) == NAMES


def test_the_device_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    free: list[float] = []

    def wait() -> None:
        with reserve_devices(["cuda:0"], folder=tmp_path):
            free.append(time.monotonic())

    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.5)
        assert not free
        holder.kill()
    killed = time.monotonic()
    waiter.join(timeout=20)
    assert free[0] - killed < 5


def test_a_forked_child_keeps_no_device(tmp_path: Path) -> None:
    forked = subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True, timeout=30)
    assert forked.stdout == "free\n"


def make_link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(place.parent / "elsewhere")


def make_open(place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)


@pytest.mark.parametrize("make", [make_link, make_open, Path.touch])
def test_a_folder_of_locks_that_others_could_have_laid_out_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "locks")
    with (
        pytest.raises(ValueError, match=r"devices: expected a folder of mode 0700 .* set TMPDIR"),
        reserve_devices(["cuda:0"], folder=tmp_path / "locks"),
    ):
        pass


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("of a user")
    (tmp_path / "locks").mkdir(mode=0o700)
    (tmp_path / "locks" / "cuda:0").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"), reserve_devices(["cuda:0"], folder=tmp_path / "locks"):
        pass
    assert (tmp_path / "precious").read_text() == "of a user"


def test_a_cpu_is_shared() -> None:
    with reserve_devices(["cpu"]) as first, reserve_devices(["cpu"], 4) as second:
        assert first == second == ["cpu"]


def test_who_needs_no_device_gets_none_and_waits_for_nobody(tmp_path: Path) -> None:
    with reserve_devices(NAMES, 2, tmp_path), reserve_devices(NAMES, 0, tmp_path) as taken:
        assert taken == []
    with reserve_devices(["cpu"], 0) as taken:
        assert taken == []


def test_more_processes_than_devices_are_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"at most one for each of 2 devices, found 3"),
        reserve_devices(NAMES, 3),
    ):
        pass


def test_a_step_that_waits_for_a_device_can_be_stopped(tmp_path: Path) -> None:
    def wait() -> None:
        with reserve_devices(["cuda:0"], folder=tmp_path):
            raise AssertionError("it was taken")

    def interrupt(pool: ThreadPoolExecutor) -> Future[None]:
        with contextlib.suppress(KeyboardInterrupt), stoppable():
            waiting = pool.submit(contextvars.copy_context().run, wait)
            time.sleep(0.3)
            raise KeyboardInterrupt
        return waiting

    with reserve_devices(["cuda:0"], folder=tmp_path), ThreadPoolExecutor(1) as pool:
        waiting = interrupt(pool)
        with pytest.raises(Stopped):
            waiting.result(timeout=20)


def test_named_devices_are_those_and_an_absent_one_is_refused() -> None:
    assert visible_devices("cpu") == ["cpu"]
    with pytest.raises(ValueError, match=r"found 'cuda:99'; try cpu or auto"):
        visible_devices("cuda:99")
    with pytest.raises(ValueError, match=r"found 'gpu'"):
        visible_devices("cpu, gpu")


def test_a_child_sees_the_devices_of_its_step_alone() -> None:
    assert showing_only(["cuda:0", "cuda:2"], {}) == {"CUDA_VISIBLE_DEVICES": "0,2"}
    assert showing_only(["cuda:1"], {"CUDA_VISIBLE_DEVICES": "4,GPU-7f"}) == {"CUDA_VISIBLE_DEVICES": "GPU-7f"}
    assert showing_only(["cpu"], {"CUDA_VISIBLE_DEVICES": "4"}) == {}


def test_there_is_a_worker_for_each_device_and_one_more_unless_asked() -> None:
    assert count_workers(None, "cpu") == 2
    assert count_workers(5, "cpu") == 5
