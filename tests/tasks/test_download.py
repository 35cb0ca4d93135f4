"""Models come into the store once, whole, from the hub or a folder, and are found there without it."""

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tasks.artifacts import ModelRef, Runtime
from tasks.download import download
from tasks.models import hub as hub_module
from tasks.models.folders import HubModel, load_model, load_tokenizer
from tasks.running.progress import Event, listening
from tasks.running.transient import is_transient
from tasks.storage.store import open_store

Make = Callable[..., Path]
WEIGHTS = "model.safetensors"
MODEL = HubModel(id="owner/tiny")
CLUTTER = {
    "pytorch_model.bin": b"a pickle",
    "evil.pkl": b"a pickle",
    "modeling_tiny.py": b"raise SystemExit",
    "../outside.json": b"{}",
    "onnx/config.json": b"{}",
    "consolidated.safetensors": b"the weights again",
    "LICENSE": b"Do what you like.",
}


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "store"), cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tiny_llama: Make) -> Path:
    return tiny_llama()


def files_of(ref: ModelRef, runtime: Runtime) -> dict[str, bytes]:
    home = open_store(runtime).fetch(ref)
    return {p.relative_to(home).as_posix(): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def artifacts(runtime: Runtime) -> list[Path]:
    return sorted(Path(runtime.root).rglob("MANIFEST.json"))


# ---- from the hub ------------------------------------------------------------------------------------------


def test_the_mirror_is_the_model_and_nothing_else(hub, folder: Path, runtime: Runtime) -> None:
    commit = hub.push("owner/tiny", folder, **CLUTTER)
    ref = download.fn(MODEL, runtime=runtime)
    expected = {p.name: p.read_bytes() for p in folder.iterdir()} | {"LICENSE": CLUTTER["LICENSE"]}
    assert files_of(ref, runtime) == expected
    manifest = open_store(runtime).manifest(ref)
    assert manifest is not None
    assert manifest.pins == {"commit": commit}
    facts = {"source": "hub", "id": "owner/tiny", "revision": "main", "commit": commit, "licence": "apache-2.0"}
    assert manifest.facts == facts
    assert not list(Path(runtime.root).rglob("download-*")), "nothing waits any more"


def test_code_is_mirrored_only_where_it_is_trusted_by_name(hub, folder: Path, runtime: Runtime) -> None:
    commit = hub.push("owner/tiny", folder, **{"extra.py": "VALUE = 1\n"})
    plain = download.fn(MODEL, runtime=runtime)
    by_name = HubModel(id="owner/tiny", revision=commit, trust_remote_code=True)
    trusted = download.fn(by_name, runtime=runtime.model_copy(update={"model_code": True}))
    assert "extra.py" not in files_of(plain, runtime)
    assert files_of(trusted, runtime)["extra.py"] == b"VALUE = 1\n"
    manifest = open_store(runtime).manifest(trusted)
    assert manifest is not None
    assert (manifest.facts["commit"], manifest.facts["trusted_code"]) == (commit, ["extra.py"])


def test_a_broken_connection_is_resumed_where_it_broke(
    hub, folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # what a break loses at most
    hub.push("owner/tiny", folder)
    hub.break_once.add(WEIGHTS)
    ref = download.fn(MODEL, runtime=runtime)
    size = (folder / WEIGHTS).stat().st_size
    assert hub.fetched(WEIGHTS) == [None, f"bytes={size // 2 // 1024 * 1024}-"]
    assert files_of(ref, runtime)[WEIGHTS] == (folder / WEIGHTS).read_bytes()


def test_the_next_attempt_keeps_the_files_that_came(hub, tiny_llama: Make, runtime: Runtime, tmp_path: Path) -> None:
    folder = tiny_llama()
    load_model(folder).save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    (folder / WEIGHTS).unlink()
    shutil.copytree(tmp_path / "parts", folder, dirs_exist_ok=True)
    parts = sorted(p.name for p in folder.glob("model-*.safetensors"))
    hub.push("owner/tiny", folder)
    hub.broken.add(parts[-1])
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the client's own error; what counts is the next line)
        download.fn(MODEL, runtime=runtime)
    assert is_transient(caught.value)
    assert not artifacts(runtime)
    hub.broken.clear()
    ref = download.fn(MODEL, runtime=runtime)
    assert [len(hub.fetched(part)) for part in parts] == [1] * (len(parts) - 1) + [2]
    assert set(parts) <= set(files_of(ref, runtime))


def test_a_file_with_other_content_than_listed_is_fetched_again(hub, folder: Path, runtime: Runtime) -> None:
    hub.push("owner/tiny", folder)
    hub.corrupt_once.add(WEIGHTS)
    with pytest.raises(OSError, match=r"model.safetensors: expected sha256 .* found") as caught:
        download.fn(MODEL, runtime=runtime)
    assert is_transient(caught.value)
    assert files_of(download.fn(MODEL, runtime=runtime), runtime)[WEIGHTS] == (folder / WEIGHTS).read_bytes()


OTHER_PROCESS = """
import sys
from tasks.artifacts import Runtime
from tasks.download import download
from tasks.models.folders import HubModel
from tasks.running.progress import listening

with listening(lambda event: print(event.state, flush=True)):
    ref = download.fn(HubModel(id="owner/tiny"), runtime=Runtime.model_validate_json(sys.argv[1]))
print(ref.fingerprint)
"""


def test_two_processes_download_once(hub, folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 60)  # the other process takes its time
    hub.push("owner/tiny", folder)
    hub.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(download.fn, MODEL, runtime=runtime)
        while not hub.fetched(WEIGHTS):
            assert not mine.done()
            time.sleep(0.01)
        command = [sys.executable, "-c", OTHER_PROCESS, runtime.model_dump_json()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "waiting\n"
            hub.gate.set()
            assert other.stdout.read().split() == ["cached", mine.result().fingerprint]
    assert other.returncode == 0
    assert len(hub.fetched(WEIGHTS)) == 1


def test_a_commit_is_one_artifact_whatever_names_it(hub, folder: Path, tiny_llama: Make, runtime: Runtime) -> None:
    first = hub.push("owner/tiny", folder)
    hub.push("owner/tiny", folder, revision="v1")
    old = download.fn(MODEL, runtime=runtime)
    assert download.fn(HubModel(id="owner/tiny", revision="v1"), runtime=runtime) == old
    assert download.fn(HubModel(id="owner/tiny", revision=first), runtime=runtime) == old
    hub.push("owner/tiny", tiny_llama(seed=1))
    moved = download.fn(MODEL, runtime=runtime)
    assert moved != old
    assert download.fn(HubModel(id="owner/tiny", revision="v1"), runtime=runtime) == old
    assert len(hub.fetched(WEIGHTS)) == 2


def test_a_full_commit_asks_the_hub_nothing_once_mirrored(hub, folder: Path, runtime: Runtime) -> None:
    pinned = HubModel(id="owner/tiny", revision=hub.push("owner/tiny", folder))
    ref = download.fn(pinned, runtime=runtime)
    hub.requests.clear()
    assert download.fn(pinned, runtime=runtime) == ref
    assert hub.requests == []


def test_progress_counts_bytes_up_to_all(hub, folder: Path, runtime: Runtime) -> None:
    hub.push("owner/tiny", folder)
    events: list[Event] = []
    with listening(events.append):
        ref = download.fn(MODEL, runtime=runtime)
    work = [event for event in events if event.state == "work"]
    total = sum(map(len, files_of(ref, runtime).values()))
    assert (work[-1].done, work[-1].total, work[-1].unit) == (total, total, "bytes")
    assert all(0 <= event.done <= event.total for event in work)


def test_a_bucket_holds_the_same_mirror(
    hub, folder: Path, runtime: Runtime, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("owner/tiny", folder)
    remote = Runtime(root=s3_root, cache_dir=str(tmp_path / "remote-cache"))
    hub.broken.add(WEIGHTS)
    with pytest.raises(OSError):  # noqa: PT011 (only to leave an attempt behind)
        download.fn(MODEL, runtime=remote)
    hub.broken.clear()
    ref = download.fn(MODEL, runtime=remote)
    assert len(hub.fetched("tokenizer.json")) == 1
    assert ref == download.fn(MODEL, runtime=runtime)
    assert files_of(ref, remote) == files_of(ref, runtime)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download.fn(MODEL, runtime=remote) == ref


# ---- without the hub ---------------------------------------------------------------------------------------


def test_offline_the_mirror_of_what_was_last_downloaded_is_used(
    hub, folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.push("owner/tiny", folder)
    ref = download.fn(MODEL, runtime=runtime)
    hub.requests.clear()
    hub_module._warn_remembered.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with caplog.at_level(logging.WARNING, logger="tasks.models.hub"):
        assert [download.fn(MODEL, runtime=runtime) for _ in range(3)] == [ref] * 3
    assert len([r for r in caplog.records if r.name == "tasks.models.hub"]) == 1
    home = open_store(runtime).fetch(ref)
    assert len(load_tokenizer(home)) == 400
    assert load_model(home)(torch.ones(1, 3, dtype=torch.int64)).logits.shape == (1, 3, 400)
    assert hub.requests == []


def test_an_unreachable_hub_counts_as_offline(
    hub, folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("owner/tiny", folder)
    ref = download.fn(MODEL, runtime=runtime)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert download.fn(MODEL, runtime=runtime) == ref
    with pytest.raises(ConnectionError, match=r"model owner/other: the hub can't be reached"):
        download.fn(HubModel(id="owner/other"), runtime=runtime)


def test_offline_errors_say_what_is_known_and_are_not_retried(
    hub, folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push("owner/tiny", folder)
    download.fn(MODEL, runtime=runtime)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=rf"'v1' in the store, found only main = {commit}"):
        download.fn(HubModel(id="owner/tiny", revision="v1"), runtime=runtime)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set, found nothing; run once online"):
        download.fn(HubModel(id="owner/other"), runtime=runtime)
    with pytest.raises(ValueError, match=r"not in the store, and HF_HUB_OFFLINE is set"):
        download.fn(HubModel(id="owner/other", revision="0" * 40), runtime=runtime)


# ---- refusals of the hub -----------------------------------------------------------------------------------


def test_a_gated_model_says_how_to_get_access(
    hub, folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("owner/tiny", folder)
    hub.repositories["owner/tiny"].is_gated = True
    way_out = r"accept the licence at https://huggingface.co/owner/tiny and set HF_TOKEN"
    with pytest.raises(ValueError, match=rf"found HTTP 401; {way_out}"):
        download.fn(MODEL, runtime=runtime)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ValueError, match=rf"found HTTP 403; {way_out}"):
        download.fn(MODEL, runtime=runtime)
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    assert WEIGHTS in files_of(download.fn(MODEL, runtime=runtime), runtime)


def test_a_missing_repository_is_named(hub, runtime: Runtime) -> None:
    with pytest.raises(ValueError, match=r"model owner/tiny: no such repository .* HTTP 404; check the id"):
        download.fn(MODEL, runtime=runtime)


def test_a_missing_revision_is_named(hub, folder: Path, runtime: Runtime) -> None:
    hub.push("owner/tiny", folder)
    with pytest.raises(ValueError, match=r"model owner/tiny: .*found no revision 'v9'"):
        download.fn(HubModel(id="owner/tiny", revision="v9"), runtime=runtime)


def test_what_can_not_be_read_is_found_out_before_the_weights_come(hub, tiny_llama: Make, runtime: Runtime) -> None:
    hub.push("owner/tiny", tiny_llama(vocab_size=300))
    with pytest.raises(ValueError, match=r"model owner/tiny: .* at most 300 ids.*found 400"):
        download.fn(MODEL, runtime=runtime)
    assert hub.fetched(WEIGHTS) == []
    assert not artifacts(runtime)
