"""What is shown while steps run: counted once, in lines, in JSON, or as bars."""

import io
import json
import os
import threading

import pytest
from rich.console import Console

from flows.cli.progress import Bars, Display, JsonLines, Lines, Tally
from tasks.running.progress import Event, tell

RUN = (
    Event("extract", "extract neox 001/003", "cached"),
    Event("extract", "extract neox 002/003", "started"),
    Event("extract", "extract neox 002/003", "work", done=50, total=100, unit="tokens"),
    Event("extract", "extract neox 002/003", "failed", message="ConnectionError: reset\nby peer"),
    Event("extract", "extract neox 002/003", "started"),
    Event("extract", "extract neox 002/003", "computed", seconds=1.25),
    Event("extract", "extract neox 003/003", "waiting", message="another process computes it"),
    Event("extract", "extract neox 003/003", "cached"),
    Event("train", "train llama", "started"),
    Event("train", "train llama", "work", done=5, total=10, unit="steps"),
    Event("train", "train llama", "computed", seconds=60.0),
    Event("train", "train llama", "cached"),  # another part of the flow asks for it too
)


def play(display: Display) -> Tally:
    with display:
        for event in RUN:
            tell(event)
    return display.tally


def test_shards_of_a_label_are_one_stage_and_count_once() -> None:
    tally = play(Display())
    assert list(tally.stages) == ["extract neox", "train llama"]
    assert (tally.cached, tally.computed, tally.failed) == (2, 2, 1)
    assert tally.sentence() == "2 cached, 2 computed, 1 failed attempts"
    assert all(stage.is_complete for stage in tally.stages.values())


def test_work_counts_by_its_share_until_the_shard_ends() -> None:
    tally = Tally()
    assert tally.add(RUN[0]).done == 1
    assert tally.add(RUN[2]).done == 1.5
    assert tally.add(RUN[3]).done == 1


def test_lines_tell_what_took_time_or_went_wrong() -> None:
    stream = io.StringIO()
    play(Lines(stream))
    assert stream.getvalue().splitlines() == [
        "failed extract neox 002/003: ConnectionError: reset by peer",
        "computed extract neox 002/003 1.2 s",
        "waiting extract neox 003/003: another process computes it",
        "computed train llama 60.0 s",
    ]


def test_json_lines_leave_out_only_work_under_way() -> None:
    stream = io.StringIO()
    play(JsonLines(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == [event.state for event in RUN if event.state != "work"]
    assert {"event": "computed", "step": "train", "label": "train llama", "seconds": 60.0} in events


def test_bars_leave_a_line_for_each_stage_in_which_something_was_computed() -> None:
    stream = io.StringIO()
    play(Bars(Console(file=stream, force_terminal=True, width=100, color_system=None)))
    shown = stream.getvalue()
    assert "✓ extract neox  1.2 s, 3 shards, 2 cached" in shown
    assert "✓ train llama  60.0 s" in shown
    assert "failed extract neox 002/003: ConnectionError: reset by peer" in shown


def test_a_stage_that_was_cached_throughout_leaves_no_line() -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=True, width=100, color_system=None)):
        for number in (1, 2):
            tell(Event("fuse", f"fuse 00{number}/002", "cached"))
    assert "fuse" not in stream.getvalue()


def test_nothing_is_heard_after_the_block() -> None:
    display = Display()
    play(display)
    tell(Event("fuse", "fuse 001/001", "computed"))
    assert "fuse" not in display.tally.stages


def test_a_display_that_fails_fails_no_step_and_hears_no_more(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `run --json | head` does once it has seen enough
    display = JsonLines(os.fdopen(writing, "w"))
    with Display() as other, display:
        for event in RUN:
            tell(event)
    assert other.tally.computed == 2
    assert display.tally.computed == 0
    assert [record.getMessage() for record in caplog.records] == [
        "progress is no longer shown: BrokenPipeError: [Errno 32] Broken pipe"
    ]
    with pytest.raises(BrokenPipeError):
        display.stream.close()


def test_events_of_many_threads_are_all_counted() -> None:
    def work(thread: int) -> None:
        for number in range(100):
            tell(Event("align", f"align {thread * 100 + number + 1:03}/800", "computed"))

    with Display() as display:
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert display.tally.computed == 800
    assert display.tally.stages["align"].is_complete
