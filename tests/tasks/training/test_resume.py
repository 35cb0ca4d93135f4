"""A training that was killed ends as if nothing had happened."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tasks.artifacts import Runtime
from tasks.running.progress import Event, listening
from tasks.runtime import TrainingRuntime
from tasks.storage.store import Store
from tasks.train import train
from tasks.training.checkpoints import CHECKPOINTS, MARK, Checkpoints
from tasks.training.failures import TrainingFailed
from tasks.training.spec import TrainingSpec
from tests.tasks.training.conftest import Lesson, learn

SPEC = TrainingSpec(lm_weight=0.3, lm_weight_schedule="rising", learning_rate=1e-2, batch_sequences=4, epochs=2)
OFTEN = TrainingRuntime(checkpoint_seconds=0.0)
ADDRESS = "train/" + "0" * 32


class Killed(Exception):
    pass


def _die_at(step: int, done: int, total: int, message: str) -> None:
    if done == step:
        raise Killed


@pytest.fixture
def lesson_at_root(lesson: Lesson, runtime: Runtime, store: Store) -> Lesson:
    """The same lesson in a store of its own, on a disk or in a bucket."""
    store.fs.put(lesson.runtime.root + "/", store.base + "/", recursive=True)
    return replace(lesson, runtime=runtime)


@pytest.mark.parametrize("killed_at", [2, 7])
def test_a_killed_training_goes_on_to_the_same_bytes_losses_and_batches(
    lesson_at_root: Lesson, tmp_path: Path, killed_at: int
) -> None:
    lesson = lesson_at_root
    whole = lesson.job(SPEC, tmp_path / "whole", model=lesson.noisy)
    undisturbed = learn(whole)
    killed = lesson.job(SPEC, tmp_path / "killed", OFTEN, model=lesson.noisy)
    with pytest.raises(Killed):
        learn(killed, lambda *words: _die_at(killed_at, *words))
    checkpoint = Checkpoints(lesson.store, killed.address).newest()
    again = lesson.job(SPEC, tmp_path / "again", model=lesson.noisy, resume=checkpoint)
    resumed = learn(again)
    assert resumed["resumed_at_step"] == killed_at - 1
    assert undisturbed["steps"] > killed_at
    for fact in ("steps", "batches_sha256", "train_loss", "losses"):
        assert resumed[fact] == undisturbed[fact]
    names = ("model.safetensors", "config.json", "tokenizer.json")
    assert [(again.output / n).read_bytes() for n in names] == [(whole.output / n).read_bytes() for n in names]


def test_a_model_that_the_cache_let_go_of_while_the_corpus_was_read_is_fetched_again(
    lesson: Lesson, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Store(s3_root)
    bucket.fs.put(lesson.runtime.root + "/", bucket.base + "/", recursive=True)
    narrow = Runtime(root=s3_root, cache_dir=str(tmp_path / "cache"), cache_bytes=1, device="cpu")
    monkeypatch.setattr("tasks.storage.store.IN_USE_SECONDS", 0.0)  # as if every fetch had taken longer
    learned = learn(replace(lesson, runtime=narrow).job(SPEC, tmp_path / "out"))
    assert learned["batches_sha256"] == learn(lesson.job(SPEC, tmp_path / "whole"))["batches_sha256"]


def _folder(tmp_path: Path, content: bytes) -> Path:
    folder = tmp_path / content.decode()
    (folder / "part").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(content)
    (folder / "part" / "weights").write_bytes(content * 2)
    return folder


def test_the_newest_checkpoint_wins_and_older_ones_go(store: Store, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store, ADDRESS)
    assert checkpoints.newest() is None
    for step in (9, 10, 100):
        checkpoints.save(_folder(tmp_path, b"state %d" % step), step)
    found = checkpoints.newest()
    assert found is not None
    assert (found / "optimizer.pt").read_bytes() == b"state 100"
    assert (found / "part" / "weights").read_bytes() == b"state 100" * 2
    assert len(store.names(f"{ADDRESS}/{CHECKPOINTS}")) == 1
    checkpoints.remove()
    assert checkpoints.newest() is None
    assert store.names(f"{ADDRESS}/{CHECKPOINTS}") == []


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "unmarked", "torn mark"])
def test_a_half_written_checkpoint_is_passed_over(store: Store, tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(store, ADDRESS)
    checkpoints.save(_folder(tmp_path, b"state 2"), 20)
    checkpoints.save(_folder(tmp_path, b"state 1"), 10)
    newer = f"{ADDRESS}/{CHECKPOINTS}/" + store.names(f"{ADDRESS}/{CHECKPOINTS}")[-1]
    file = f"{newer}/part/weights"
    if damage == "missing":
        store.remove(file)
    elif damage == "unmarked":
        store.remove(f"{newer}/{MARK}")
    elif damage == "torn mark":
        store.write(f"{newer}/{MARK}", (store.read(f"{newer}/{MARK}") or b"")[:-9])
    else:
        store.write(file, b"state 2state" if damage == "truncated" else b"state 3state 3")
    found = checkpoints.newest()
    assert found is not None
    assert (found / "optimizer.pt").read_bytes() == b"state 1"


def test_checkpoints_of_another_model_or_layout_are_not_found(store: Store, tmp_path: Path) -> None:
    Checkpoints(store, ADDRESS).save(_folder(tmp_path, b"state 1"), 1)
    assert Checkpoints(store, ADDRESS.replace("0", "1")).newest() is None
    assert Checkpoints(store, ADDRESS, layout="sharded").newest() is None
    assert Checkpoints(store, ADDRESS).newest() is not None


@pytest.mark.slow
def test_a_child_killed_by_the_kernel_is_explained_and_the_next_call_goes_on(lesson: Lesson, tmp_path: Path) -> None:
    runtime = lesson.runtime.model_copy(update={"training": OFTEN})
    steps: list[int] = []

    def kill(event: Event) -> None:
        if event.state == "work":
            steps.append(event.done)
            if event.done == 3:
                for child in psutil.Process().children():
                    child.kill()

    with (
        listening(kill),
        pytest.raises(TrainingFailed, match=r"killed at step \d of 8 \(exit -9\).* memory.*micro_batch"),
    ):
        train.fn(lesson.target, lesson.shards, lesson.teachers, SPEC, runtime=runtime)
    trained = train.fn(lesson.target, lesson.shards, lesson.teachers, SPEC, runtime=runtime)
    facts = lesson.facts(trained)
    assert facts["resumed_at_step"] >= 2
    whole = lesson.job(SPEC, tmp_path / "whole")
    assert learn(whole)["losses"] == facts["losses"]
    folder = lesson.store.fetch(trained)
    assert (folder / "model.safetensors").read_bytes() == (whole.output / "model.safetensors").read_bytes()
    assert CHECKPOINTS not in lesson.store.names(trained.address)
    events = Path(lesson.runtime.root, "tensorboard", trained.fingerprint[:12]).glob("events.out.tfevents.*")
    assert len(list(events)) == 2  # one per attempt
