"""The drills can be held, tell a broken promise from a kept one, and a few trials of each break none."""

import http.client
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.drills.outcome import Outcome
from tests.drills.proxy import FOR_EVER, Fault, Line, line_to

ROOT = Path(__file__).parents[1]


def hold(*words: str) -> str:
    """What the drills print. By themselves: they fork, which pytest's process with its threads must not."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drills", "--short", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_a_step_over_a_breaking_line_and_eight_processes_on_one_root_keep_their_promises() -> None:
    table = hold("storage", "concurrency")
    assert table.count("kept") == 7


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_damaged_and_cramped_runs_keep_their_promises() -> None:
    table = hold("kill", "corruption", "disk", "soak", "restart", "clock")
    assert table.count("kept") + table.count("skipped") >= 8


LANES = """
import sys
from pathlib import Path
from tests.drills.lanes import begin_lane, watch
from tests.drills.outcome import Outcome, Skip

def break_down():
    yield Outcome("before", trials=3)
    raise RuntimeError("the drill itself")

lanes = [begin_lane("whole", lambda: [Skip("skipped", "why")], Path(sys.argv[1]))]
lanes += [begin_lane("broken", break_down, Path(sys.argv[1]))]
print(*sorted(outcome.line() for outcome in watch(lanes)), sep="\\n")
"""


def test_a_lane_that_breaks_down_is_a_broken_promise_and_keeps_what_it_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LANES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    before, broken, skipped = sorted(done.stdout.splitlines())
    assert "3      0     0     0      0.0 s  kept" in before
    assert "BROKEN  ended with 70: RuntimeError: the drill itself" in broken
    assert skipped.endswith("skipped: why")


@pytest.mark.parametrize(
    ("outcome", "is_kept"),
    [
        (Outcome("a", trials=1), True),
        (Outcome("nothing was tried"), False),
        (Outcome("a", trials=1, lost=1), False),
        (Outcome("a", trials=1, wrong=1), False),
        (Outcome("a", trials=1, longest=3.0, limit=2.0), False),
    ],
)
def test_a_promise_is_kept_when_nothing_is_lost_or_wrong_and_in_time(outcome: Outcome, is_kept: bool) -> None:
    assert outcome.is_kept is is_kept
    assert ("kept" in outcome.line()) is is_kept


# ---- the line that breaks ------------------------------------------------------------------------------

BODY = b"0123456789" * 100


class _Server(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with line_to(f"http://127.0.0.1:{server.server_port}") as line:
        yield line
    server.shutdown()
    thread.join()
    server.server_close()


def get(line: Line) -> bytes:
    with urllib.request.urlopen(f"{line.url}/bucket/key", timeout=10) as answer:
        return bytes(answer.read())


def test_a_whole_line_changes_nothing(line: Line) -> None:
    line.break_with(None)
    assert get(line) == BODY


@pytest.mark.parametrize("kind", ["reset", "reset in the answer", "lost answer", "cut"])
def test_a_broken_answer_is_an_error_for_the_client_and_only_so_often(line: Line, kind: str) -> None:
    line.break_with(Fault(kind, times=2, after=1))  # type: ignore[arg-type]
    assert get(line) == BODY
    for _ in range(2):
        with pytest.raises((OSError, http.client.HTTPException)):
            get(line)
    assert get(line) == BODY
    assert line.injected == 2


def test_a_server_dies_with_half_of_its_answer_sent_or_all_of_it(line: Line) -> None:
    deaths: list[str] = []
    line.outage = lambda: deaths.append("killed")
    line.break_with(Fault("server dies"))
    with pytest.raises((OSError, http.client.HTTPException)):
        get(line)
    line.break_with(Fault("server dies afterwards"))
    assert get(line) == BODY
    assert deaths == ["killed", "killed"]


def test_a_wrong_byte_is_one_byte(line: Line) -> None:
    line.break_with(Fault("wrong byte"))
    found = get(line)
    assert len(found) == len(BODY)
    assert sum(a != b for a, b in zip(found, BODY, strict=True)) == 1


def test_a_refusal_is_in_the_words_of_s3(line: Line) -> None:
    line.break_with(Fault("answer", "^GET", FOR_EVER, 403, "AccessDenied"))
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(line)
    with caught.value as answer:
        assert answer.code == 403
        assert b"<Code>AccessDenied</Code>" in answer.read()


def test_a_black_hole_is_silent_until_its_time_is_over(line: Line) -> None:
    line.break_with(Fault("black hole", seconds=0.5))
    with pytest.raises(ConnectionError):
        get(line)
    assert get(line) == BODY
