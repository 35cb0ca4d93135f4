"""A step: the same work is done once, whoever asks, and a failed or killed attempt leaves no half of anything."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fusion_core.spec import Spec
from tasks.artifacts import CorpusRef, ModelRef, Runtime, ShardRef, StoreError, TextsRef
from tasks.running.environment import environment
from tasks.running.planning import planning
from tasks.running.progress import Event, listening
from tasks.step import Output, step
from tasks.storage.store import open_store

CALLS: list[str] = []


class Length(Spec):
    times: int = 1


@step(version=1)
def write_text(text: str, spec: Length = Length(), *, runtime: Runtime, out: Output) -> TextsRef:
    """A text, several times."""
    CALLS.append(text)
    (out.dir / "deep").mkdir()
    (out.dir / "deep" / "text.txt").write_text(text * spec.times)
    out.facts["letters"] = len(text) * spec.times
    out.progress(1, 1, "texts")
    return out.ref(TextsRef)


@step(version=1)
def join(texts: list[TextsRef], *, runtime: Runtime, out: Output) -> CorpusRef:
    """All texts in one file."""
    CALLS.append("join")
    store = open_store(runtime)
    (out.dir / "all.txt").write_text("".join((store.fetch(ref) / "deep/text.txt").read_text() for ref in texts))
    return out.ref(CorpusRef, num_shards=2)


@step(version=1)
def read_shard(shard: ShardRef, *, runtime: Runtime, out: Output) -> ModelRef:
    """Nothing of note."""
    CALLS.append("shard")
    return out.ref(ModelRef)


@step(version=1, pin=lambda path, runtime: {"bytes": len(Path(path).read_bytes())})
def copy(path: str, *, runtime: Runtime, out: Output) -> TextsRef:
    """A file of this machine."""
    (out.dir / "copy").write_bytes(Path(path).read_bytes())
    return out.ref(TextsRef)


@step(version=1, on_device=lambda *, count, runtime: count)
def take(count: int, *, runtime: Runtime, out: Output) -> TextsRef:
    """The devices that it was given."""
    (out.dir / "devices").write_text(runtime.device)
    return out.ref(TextsRef)


@step(version=1)
def fail(how: str, *, runtime: Runtime, out: Output) -> TextsRef:
    """Never well."""
    (out.dir / "half").write_text("half")
    if how == "raise":
        raise ValueError("bad input")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "full":
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    if how == "facts":
        out.facts["bad"] = object()
    return TextsRef(step="else", fingerprint="f" * 32) if how == "ref" else out.ref(TextsRef)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_the_second_call_finds_what_the_first_made(runtime: Runtime) -> None:
    first = write_text.fn("abc", Length(times=2), runtime=runtime)
    assert write_text.fn(text="abc", spec=Length(times=2), runtime=runtime) == first
    assert CALLS == ["abc"]
    assert (open_store(runtime).fetch(first) / "deep/text.txt").read_text() == "abcabc"


def test_only_what_is_meant_enters_the_fingerprint(tmp_path: Path) -> None:
    here = Runtime(root=str(tmp_path))
    there = Runtime(root="s3://elsewhere/x", device="cuda", batch_tokens=1, max_workers=9, lease_seconds=1.0)
    mark = write_text.fingerprint("abc", runtime=here)
    assert write_text.fingerprint("abc", Length(), runtime=there) == mark
    assert write_text.fingerprint("abd", runtime=here) != mark
    assert write_text.fingerprint("abc", Length(times=2), runtime=here) != mark
    assert step(version=2)(write_text.body).fingerprint("abc", runtime=here) != mark


def test_a_step_may_gain_an_argument_and_still_find_what_it_made(runtime: Runtime) -> None:
    def write_more(
        text: str, spec: Length = Length(), joined: Sequence[TextsRef] = (), *, runtime: Runtime, out: Output
    ) -> TextsRef:
        CALLS.append("more")
        return out.ref(TextsRef)

    made = write_text.fn("abc", runtime=runtime)
    write_more.__name__ = "write_text"
    grown = step(version=1)(write_more)
    CALLS.clear()
    assert grown.fn("abc", Length(times=1), [], runtime=runtime) == made
    assert CALLS == []
    assert grown.fn("abc", joined=[made], runtime=runtime) != made
    assert CALLS == ["more"]


def test_both_kinds_of_store_get_the_same_refs_and_bytes(s3_root: str, tmp_path: Path) -> None:
    written = []
    for root in (str(tmp_path / "store"), s3_root):
        runtime = Runtime(root=root, cache_dir=str(tmp_path / "cache"))
        ref = join.fn([write_text.fn(text, runtime=runtime) for text in "ab"], runtime=runtime)
        manifest = open_store(runtime).manifest(ref)
        assert manifest is not None
        written.append((ref, {name: fact.sha256 for name, fact in manifest.files.items()}, manifest.arguments))
    assert written[0] == written[1]


def test_a_manifest_tells_where_a_result_came_from(runtime: Runtime) -> None:
    texts = [write_text.fn(text, runtime=runtime, label=f"write {text}") for text in "ab"]
    corpus = join.fn(texts, runtime=runtime)
    assert corpus.num_shards == 2
    joined, written = open_store(runtime).manifest(corpus), open_store(runtime).manifest(texts[0])
    assert joined is not None
    assert written is not None
    assert joined.inputs == texts
    assert joined.ref == corpus
    assert written.label == "write a"
    assert written.arguments == {"text": "a", "spec": {"times": 1}}
    assert written.facts == {"letters": 1}
    assert written.environment == environment("cpu")
    assert written.flow_run_id is None


def test_a_deleted_artifact_is_a_miss_and_comes_back_the_same(tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path))
    ref = write_text.fn("abc", runtime=runtime)
    (data,) = (tmp_path / ref.address).rglob("text.txt")
    before = data.read_bytes()
    shutil.rmtree(tmp_path / ref.address)
    assert write_text.fn("abc", runtime=runtime) == ref
    (data,) = (tmp_path / ref.address).rglob("text.txt")
    assert data.read_bytes() == before
    assert CALLS == ["abc", "abc"]


def test_a_shard_of_another_corpus_with_the_same_content_is_a_hit(runtime: Runtime) -> None:
    for number in range(2):
        read_shard.fn(ShardRef(step="corpus", fingerprint=str(number) * 32, index=number, digest="d"), runtime=runtime)
    assert CALLS == ["shard"]


def test_what_the_world_is_found_to_be_joins_the_identity(tmp_path: Path) -> None:
    runtime, source = Runtime(root=str(tmp_path / "store")), tmp_path / "source"
    source.write_text("one")
    first = copy.fn(str(source), runtime=runtime)
    source.write_text("three")
    assert copy.fn(str(source), runtime=runtime) != first
    manifest = open_store(runtime).manifest(first)
    assert manifest is not None
    assert manifest.pins == {"bytes": 3}


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("raise", ValueError),
        ("interrupt", KeyboardInterrupt),
        ("full", StoreError),
        ("facts", ValueError),
        ("ref", TypeError),
    ],
)
def test_a_body_that_fails_leaves_nothing(runtime: Runtime, how: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail.fn(how, runtime=runtime)
    assert open_store(runtime).listing() == {}
    assert not list(Path(str(runtime.cache_dir)).rglob("half"))


def test_a_commit_of_unknown_outcome_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, runtime = os.link, Runtime(root=str(tmp_path))

    def link_and_lose_the_reply(source: Path, target: Path) -> None:
        link(source, target)
        if target.name == "MANIFEST.json":
            raise TimeoutError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link_and_lose_the_reply)
        with pytest.raises(TimeoutError, match="no answer"):
            write_text.fn("abc", runtime=runtime)
    ref = write_text.fn("abc", runtime=runtime)
    assert CALLS == ["abc"]
    assert (open_store(runtime).fetch(ref) / "deep/text.txt").read_text() == "abc"


def test_a_steps_arguments_say_how_many_devices_it_takes_and_none_is_looked_for_if_none(tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path), device="cuda:99")
    assert (open_store(runtime).fetch(take.fn(0, runtime=runtime)) / "devices").read_text() == "cpu"
    with pytest.raises(ValueError, match=r"found 'cuda:99'; try cpu or auto"):
        take.fn(1, runtime=runtime)


def test_an_unknown_or_missing_argument_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="missing text"):
        write_text.fn(runtime=Runtime(root=str(tmp_path)))
    with pytest.raises(TypeError, match="surprise"):
        write_text.fn("a", surprise=1, runtime=Runtime(root=str(tmp_path)))


def test_a_newer_manifest_stops_a_step_instead_of_being_made_again(tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path))
    path = tmp_path / write_text.fn("abc", runtime=runtime).address / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(StoreError, match="found 99; upgrade"):
        write_text.fn("abc", runtime=runtime)


def test_listeners_hear_what_happens(tmp_path: Path) -> None:
    runtime, heard = Runtime(root=str(tmp_path)), list[Event]()
    with listening(heard.append):
        write_text.fn("abc", runtime=runtime, label="write")
        write_text.fn("abc", runtime=runtime, label="again")
        with pytest.raises(ValueError, match="bad input"):
            fail.fn("raise", runtime=runtime)
    write_text.fn("abd", runtime=runtime)
    states = [(event.label, event.state) for event in heard]
    assert states[:4] == [("write", "started"), ("write", "work"), ("write", "computed"), ("again", "cached")]
    assert states[4:] == [("fail", "started"), ("fail", "failed")]
    assert heard[-1].message == "ValueError: bad input"


def test_a_plan_computes_nothing_and_knows_what_is_there(runtime: Runtime) -> None:
    def flow() -> CorpusRef:
        texts = [write_text.submit(text, runtime=runtime, label=text) for text in "ab"]
        ref: CorpusRef = join.submit(texts, runtime=runtime).result()
        return ref

    known = write_text.fn("a", runtime=runtime)
    before = sorted(open_store(runtime).listing())
    with planning() as plan:
        planned = flow()
    assert sorted(open_store(runtime).listing()) == before
    assert [(entry.step, entry.label, entry.cached_bytes) for entry in plan] == [
        ("write_text", "a", 1),
        ("write_text", "b", None),
        ("join", "join", None),
    ]
    assert plan[0].ref == known
    assert planned.address == join.fn([known, write_text.fn("b", runtime=runtime)], runtime=runtime).address
    with planning() as plan:
        assert flow().num_shards == 2
    assert all(entry.cached_bytes is not None for entry in plan)


# ---- several processes ---------------------------------------------------------------------------------

WORKER = """
import os, sys, time
from pathlib import Path
from tasks.artifacts import Runtime, TextsRef
from tasks.step import Output, step

@step(version=1)
def slow(text: str, *, runtime: Runtime, out: Output) -> TextsRef:
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (out.dir / "half").write_text("half")
    time.sleep(float(sys.argv[3]))
    (out.dir / "text").write_text(text)
    return out.ref(TextsRef)

print(slow.fn("abc", runtime=Runtime(root=sys.argv[1], cache_dir=sys.argv[2] + ".cache", lease_seconds=3.0)).address)
"""


def start_worker(root: str, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, root, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_compute_once_and_agree(root: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [start_worker(root, log, seconds=2.0) for _ in range(2)]
    addresses = {worker.communicate(timeout=60)[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0]
    assert len(addresses) == 1
    assert len(log.read_text().split()) == 1


def test_a_killed_step_is_done_again_at_once_and_shows_no_half(tmp_path: Path) -> None:
    root, log = tmp_path / "store", tmp_path / "log"
    victim = start_worker(str(root), log, seconds=600)
    while not list(root.rglob("half")):
        assert victim.poll() is None
        time.sleep(0.05)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert not list(root.rglob("MANIFEST.json"))
    again = start_worker(str(root), log, seconds=0)
    address = again.communicate(timeout=60)[0].strip()
    assert again.returncode == 0
    manifest = json.loads((root / address / "MANIFEST.json").read_text())
    assert sorted(manifest["files"]) == ["half", "text"]
    assert len(log.read_text().split()) == 2
    assert not list((root / address).glob("CLAIM.*"))
