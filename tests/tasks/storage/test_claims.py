"""Claims: one owner at a time, nobody waits for the dead, and the living are left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tasks.storage.claims import Claim, Claims, claim_record, owner_state, this_process
from tasks.storage.objects import Objects
from tasks.storage.store import Store

ADDRESS = "extract/" + "a" * 32
OWNER = """
import sys, time
from tasks.storage.claims import Claims
from tasks.storage.objects import Objects
assert Claims(Objects(sys.argv[1]), sys.argv[2], "victim", 600.0).acquire()
print("held", flush=True)
time.sleep(600)
"""


def take(store: Objects, owner: str, lease: float = 600.0) -> Claim | None:
    return Claims(store, ADDRESS, owner, lease).acquire()


def hold(store: Objects, owner: str, lease: float = 600.0) -> Claim:
    claim = take(store, owner, lease)
    assert claim is not None
    return claim


def leave_claim(store: Objects, lease: float, **changes: object) -> None:
    """A claim as an owner leaves it that no longer renews it."""
    body = {"owner": "gone", "beats": 3, "lease_seconds": lease, **this_process(), **changes}
    store.write(f"{ADDRESS}/CLAIM.000000", json.dumps(body).encode())


def test_one_owner_at_a_time(store: Store) -> None:
    with hold(store, "first"):
        assert take(store, "second") is None
    with hold(store, "second"):
        assert take(store, "first") is None
    assert store.listing() == {}


def test_one_winner_among_eight(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda number: take(store, f"owner {number}"), range(8)))
    (winner,) = [claim for claim in claims if claim is not None]
    winner.release()


def test_a_takeover_has_one_winner(store: Store) -> None:
    leave_claim(store, lease=600, pid=2**22 + 1)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda number: take(store, f"owner {number}"), range(8)))
    (winner,) = [claim for claim in claims if claim is not None]
    assert store.names(ADDRESS) == ["CLAIM.000001"]
    winner.release()


@pytest.mark.parametrize("is_reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_owner_of_this_host_blocks_nobody(tmp_path: Path, is_reaped: bool) -> None:
    store = Objects(str(tmp_path))
    victim = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path), ADDRESS], stdout=subprocess.PIPE, text=True)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "held\n"
        waiter = Claims(store, ADDRESS, "waiter", 600.0)
        assert waiter.acquire() is None
        os.kill(victim.pid, signal.SIGKILL)
        if is_reaped:
            victim.wait()
        deadline = time.monotonic() + 5
        while (claim := waiter.acquire()) is None:
            assert time.monotonic() < deadline, "a dead owner's claim stood for 5 s"
            time.sleep(0.01)
        claim.release()
    finally:
        victim.kill()
        victim.communicate()


def test_an_owner_of_another_host_is_given_one_lease(store: Store) -> None:
    leave_claim(store, lease=0.6, host="elsewhere")
    waiter = Claims(store, ADDRESS, "waiter", 600.0)  # the owner's lease counts, not the waiter's
    started = time.monotonic()
    while (claim := waiter.acquire()) is None:
        time.sleep(0.02)
    assert 0.6 <= time.monotonic() - started < 5
    claim.release()


def test_a_new_waiter_grants_the_whole_lease_again(tmp_path: Path) -> None:
    store = Objects(str(tmp_path))
    leave_claim(store, lease=0.2, host="elsewhere")
    os.utime(tmp_path / ADDRESS / "CLAIM.000000", (0, 0))  # its age by anybody's wall clock says nothing
    assert take(store, "waiter") is None


def test_renewals_keep_a_claim_longer_than_its_lease(store: Store) -> None:
    with hold(store, "owner", lease=0.9) as claim:
        waiter = Claims(store, ADDRESS, "waiter", 0.9)
        end = time.monotonic() + 2.7
        while time.monotonic() < end:
            assert waiter.acquire() is None
            time.sleep(0.05)
        assert claim_record(store.read(claim.path))["beats"] >= 3


def test_an_owner_that_was_taken_over_lets_go(tmp_path: Path) -> None:
    store = Objects(str(tmp_path))
    sleeper = hold(store, "sleeper", lease=0.3)
    store.remove(sleeper.path)  # what a taker does last
    with hold(store, "taker"):
        time.sleep(0.5)  # the sleeper's next beats
        sleeper.release()
        assert claim_record(store.read(sleeper.path))["owner"] == "taker"
    assert store.listing() == {}


def test_an_unreadable_claim_is_waited_for_and_then_taken(tmp_path: Path) -> None:
    store = Objects(str(tmp_path))
    store.write(f"{ADDRESS}/CLAIM.000000", b"\x00 torn")
    waiter = Claims(store, ADDRESS, "waiter", 0.2)
    assert waiter.acquire() is None
    time.sleep(0.3)
    claim = waiter.acquire()
    assert claim is not None
    claim.release()


def test_a_claim_says_what_its_owner_reads(tmp_path: Path) -> None:
    store = Objects(str(tmp_path))
    claim = Claims(store, ADDRESS, "owner", 600.0, ["corpus/b", "download/c"]).acquire()
    assert claim is not None
    assert claim_record(store.read(claim.path))["inputs"] == ["corpus/b", "download/c"]
    claim.release()


def test_processes_are_told_apart() -> None:
    here = this_process()
    assert owner_state(here) == "alive"
    assert owner_state(here | {"started_after_boot": -9.0}) == "gone"  # the number was given to another process
    assert owner_state(here | {"pid": 2**22 + 1}) == "gone"
    assert owner_state(here | {"host": "elsewhere"}) == "unknown"
    assert owner_state({"host": here["host"]}) == "unknown"
    assert owner_state({}) == "unknown"


@pytest.mark.skipif(not psutil.LINUX, reason="reads /proc")
@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_is_set_makes_no_living_owner_look_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    here = this_process()
    booted = f"btime {int(psutil.boot_time())}\n"
    statistics = Path("/proc/stat").read_text()
    assert booted in statistics
    # what /proc shows once the clock is set: the boot moves with it, as the time since then doesn't change
    (tmp_path / "stat").write_text(statistics.replace(booted, f"btime {int(psutil.boot_time()) + jump}\n"))
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert owner_state(here) == "alive"


def test_an_owner_of_an_earlier_release_is_waited_for() -> None:
    here = this_process()
    assert owner_state({"host": here["host"], "pid": here["pid"], "started": 1.0}) == "unknown"
