"""Publishing as a person does it: to a folder, a bucket and a hub, and what a stranger can do with what lies there."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from flows.publish import publish_model
from fusion_core.merging import Linear
from tasks.artifacts import ModelRef, Runtime, VerdictRef
from tasks.download import download
from tasks.library.lineage import RunRecord, record_run, runs
from tasks.merge import merge
from tasks.models.folders import LocalModel
from tasks.publishing.destinations import Folder
from tasks.step import Output, step
from tasks.storage.store import Store, open_store
from tests.conftest import ModelFactory
from tests.flows.conftest import Cli
from tests.tasks.conftest import Hub, hub

__all__ = ["hub"]  # a fixture

LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
place = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(place)
tokenizer = AutoTokenizer.from_pretrained(place)
ids = tokenizer("The quick brown fox", return_tensors="pt").input_ids
print(model.generation_config.temperature, bool(tokenizer.chat_template))
print(model(ids).logits.sum().item())
assert not {"tasks", "flows", "fusion_core", "prefect"} & set(sys.modules)
"""


@step(version=1)
def gate(model: ModelRef, *, runtime: Runtime, out: Output) -> VerdictRef:
    """A verdict that a model got worse."""
    (out.dir / "verdict.json").write_text("{}")
    out.facts |= {"passed": False, "reasons": ["repetition in prose: 0.9 against 0.1"]}
    return out.ref(VerdictRef)


@dataclass(frozen=True)
class Merged:
    """A store that holds a merged model, and the model's address."""

    root: Path
    model: ModelRef

    @property
    def folder(self) -> Path:
        return Store(str(self.root)).fetch(self.model)


@pytest.fixture(scope="module")
def merged_once(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory) -> Merged:
    """A merge of two: a real model and a real lineage in a second."""
    folder = tmp_path_factory.mktemp("merged")
    runtime = Runtime(root=str(folder / "store"), device="cpu")
    target, other = (shutil.copytree(tiny_llama(seed=n), folder / f"model-{n}") for n in range(2))
    (target / "README.md").write_text("---\nlicense: mit\n---\nsomebody else's card\n")
    (target / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    settings = json.loads((target / "generation_config.json").read_text())
    (target / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True, "temperature": 0.7}))
    parts = [
        download.fn(LocalModel(path=str(path)), runtime=runtime, label=f"download {path.name}")
        for path in (target, other)
    ]
    return Merged(folder / "store", merge.fn(parts, None, Linear(), runtime=runtime, label="merge bench"))


@pytest.fixture
def merged(merged_once: Merged, tmp_path: Path) -> Merged:
    """A copy to be harmed, with the record of a run."""
    root = shutil.copytree(merged_once.root, tmp_path / "store")
    files, local = {"kind": "files", "paths": ["/home/me/texts/*.txt"]}, {"kind": "local", "path": "/home/me/model"}
    engine = {"kind": "endpoint", "url": "http://gpu7.lan/v1", "served_model": "big", "key_variable": "LAN_KEY"}
    recipe = {"name": "bench", "target": {"name": "student", "model": local}, "corpus": {"documents": [files]}}
    recipe["extraction"] = {"engine": engine}
    record = RunRecord(name="bench", started_at="2026-01-01", recipe=recipe, refs=[merged_once.model])
    record_run(Store(str(root)), record, run_id="run")
    return Merged(root, merged_once.model)


def load_in_a_new_process(place: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, str(place)], cwd=place.parent, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same_weights(one: Path, other: Path) -> bool:
    left, right = weights_of(one), weights_of(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_sums(folder: Path) -> list[str]:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ", 1)) for line in lines)  # type: ignore[arg-type]
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums} == sums
    return sorted(sums)


def test_what_is_published_loads_with_transformers_alone(cli: Cli, merged: Merged, tmp_path: Path) -> None:
    place = tmp_path / "out" / "model"
    called = cli("publish", merged.model.address, place, "--root", merged.root)
    assert called.code == 0, called.err
    assert called.out.startswith(f"published {merged.model} to {place}: ")
    settings, total = load_in_a_new_process(place)
    assert settings == "0.7 True"  # the generation config and the chat template are kept
    assert float(total) == float(load_in_a_new_process(merged.folder)[1])
    names = check_sums(place)
    assert {"README.md", "recipe.yaml", "provenance.jsonld", "chat_template.jinja", "model.safetensors"} <= set(names)
    card = ModelCard((place / "README.md").read_text(encoding="utf-8"))
    assert card.data.license == "mit"
    assert "somebody else" not in card.text


def test_what_goes_along_names_no_folder_or_server_of_this_machine(cli: Cli, merged: Merged, tmp_path: Path) -> None:
    place = tmp_path / "model"
    assert cli("publish", merged.model.address, place, "--root", merged.root).code == 0
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    assert recipe["target"]["model"]["path"] == "model"
    assert recipe["corpus"]["documents"][0]["paths"] == ["*.txt"]
    assert recipe["extraction"]["engine"] == {"kind": "endpoint", "served_model": "big"}
    for name in ("recipe.yaml", "README.md", "provenance.jsonld"):
        assert not re.search("/home/me|/tmp|pytest|gpu7|LAN_KEY", (place / name).read_text()), name


def test_large_weights_are_cut_and_are_the_same_model(merged: Merged, tmp_path: Path) -> None:
    runtime = Runtime(root=str(merged.root), device="cpu")
    publish_model.fn(merged.model.address, Folder(url=str(tmp_path / "cut")), shard_bytes=40_000, runtime=runtime)
    parts = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert len(parts) > 2
    assert parts[0] == f"model-00001-of-{len(parts):05}.safetensors"
    assert (tmp_path / "cut" / "model.safetensors.index.json").is_file()
    assert same_weights(tmp_path / "cut", merged.folder)


def test_twice_is_once_and_another_model_is_not_overwritten_by_accident(
    cli: Cli, merged: Merged, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    words = ("publish", merged.model.address, place, "--root", merged.root)
    assert cli(*words).code == 0
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert cli(*words).code == 0
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before
    (place / "SHA256SUMS").write_text("another")
    (place / "model-00001-of-00002.safetensors").write_text("another")
    called = cli(*words)
    assert called.code == 2
    assert "expected no model there, found another one; choose another place or say --replace" in called.err
    assert cli(*words, "--replace").code == 0
    assert not (place / "model-00001-of-00002.safetensors").exists()
    assert same_weights(place, merged.folder)


def test_a_folder_with_something_else_is_left_alone(cli: Cli, merged: Merged, tmp_path: Path) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    (place / "holiday.jpg").write_text("sea")
    called = cli("publish", merged.model.address, place, "--root", merged.root)
    assert called.code == 2
    assert "expected an empty place, found holiday.jpg" in called.err
    assert [path.name for path in place.iterdir()] == ["holiday.jpg"]


def test_a_failed_gate_and_conflicting_licences_refuse_until_both_are_named(
    cli: Cli, merged: Merged, tmp_path: Path
) -> None:
    store, place = open_store(Runtime(root=str(merged.root))), tmp_path / "model"
    gate.fn(merged.model, runtime=Runtime(root=store.root))
    for name in store.names("download"):  # as if one of them were a Llama
        path = f"download/{name}/MANIFEST.json"
        manifest = json.loads(store.read(path) or b"")
        if manifest["label"].endswith("model-1"):
            manifest["facts"]["licence"] = "llama2"
            store.write(path, json.dumps(manifest).encode())
    words = ("publish", merged.model.address, place, "--root", merged.root)
    called = cli(*words)
    assert called.code == 2
    assert "the smoke gate failed: repetition in prose" in called.err
    assert "model-1: llama2 forbids using its outputs" in called.err
    assert "says --allow gate --allow licence:model-1" in called.err
    assert cli(*words, "--allow", "gate").code == 2
    assert not place.exists()
    called = cli(*words, "--allow", "gate", "--allow", "licence:model-1")
    assert called.code == 0, called.err
    assert "in spite of gate, licence:model-1" in called.out


def test_a_hub_repository_is_made_private_and_holds_one_commit(
    cli: Cli, merged: Merged, hub: Hub, tmp_path: Path
) -> None:
    called = cli("publish", merged.model.address, "hf://owner/fused", "--root", merged.root)
    assert called.code == 0, called.err
    repository = hub.repositories["owner/fused"]
    files = repository.commits[repository.revisions["main"]]
    assert hub.written.visibility == {"owner/fused": "private"}
    assert hub.written.messages == [f"bench: {merged.model}"]
    assert set(hub.written.blobs) == {hashlib.sha256(files["model.safetensors"]).hexdigest()}
    for name, body in files.items():
        (tmp_path / "clone").mkdir(exist_ok=True)
        (tmp_path / "clone" / name).write_bytes(body)
    assert check_sums(tmp_path / "clone")
    assert same_weights(tmp_path / "clone", merged.folder)
    assert cli("publish", merged.model.address, "hf://owner/fused", "--root", merged.root).code == 0
    assert len(hub.written.messages) == 1, "the same again is no commit"
    stale = repository.commits[repository.revisions["main"]] | {"SHA256SUMS": b"", "model-1.safetensors": b"old"}
    hub.add("owner/fused", stale)
    assert cli("publish", merged.model.address, "hf://owner/fused", "--root", merged.root).code == 2
    assert cli("publish", merged.model.address, "hf://owner/fused", "--root", merged.root, "--replace").code == 0
    assert repository.commits[repository.revisions["main"]].keys() == files.keys()


def test_a_branch_is_made_and_a_repository_is_public_only_when_asked(cli: Cli, merged: Merged, hub: Hub) -> None:
    called = cli("publish", merged.model.address, "hf://owner/fused@v2", "--public", "--root", merged.root)
    assert called.code == 0, called.err
    repository = hub.repositories["owner/fused"]
    assert hub.written.visibility == {"owner/fused": "public"}
    assert list(repository.commits[repository.revisions["main"]]) == [".gitattributes"]
    assert "config.json" in repository.commits[repository.revisions["v2"]]


def test_a_branch_or_a_replacement_keeps_nothing_of_the_model_before(cli: Cli, merged: Merged, hub: Hub) -> None:
    old = {"config.json": b"{}", "modeling_old.py": b"", "added_tokens.json": b"{}", "notes.txt": b"mine"}
    sums = "".join(f"{'0' * 64}  {name}\n" for name in old if name != "notes.txt").encode()
    hub.add("owner/fused", {**old, "SHA256SUMS": sums})
    words = ("publish", merged.model.address, "--root", merged.root)
    assert cli(*words, "hf://owner/fused@v2").code == 0
    assert cli(*words, "hf://owner/fused", "--replace").code == 0
    repository = hub.repositories["owner/fused"]
    for branch in ("main", "v2"):
        names = repository.commits[repository.revisions[branch]].keys()
        assert {"notes.txt", "config.json", "model.safetensors"} <= names
        assert not {"modeling_old.py", "added_tokens.json"} & names


def test_who_may_not_write_is_told_what_to_set(cli: Cli, merged: Merged, hub: Hub) -> None:
    hub.written.writer = "hf_writer"
    called = cli("publish", merged.model.address, "hf://owner/fused", "--root", merged.root)
    assert called.code == 2
    assert "expected a token that may write there, found HTTP 403; set HF_TOKEN" in called.err
    assert called.err.count("\n") == 1


def test_an_upload_that_breaks_leaves_no_commit(cli: Cli, merged: Merged, hub: Hub) -> None:
    hub.written.breaks = True
    called = cli("publish", merged.model.address, "hf://owner/fused", "--root", merged.root)
    assert called.code == 1
    assert "publish again" in called.err
    hub.written.breaks = False
    assert cli("publish", merged.model.address, "hf://owner/fused", "--root", merged.root).code == 0


def test_what_was_published_is_kept(cli: Cli, merged: Merged, tmp_path: Path) -> None:
    for path in (merged.root / "runs").iterdir():
        path.unlink()
    assert cli("publish", merged.model.address, tmp_path / "model", "--root", merged.root).code == 0
    (record,) = runs(Store(str(merged.root))).values()
    assert record.name == f"published to {tmp_path / 'model'}"
    called = cli("gc", "--min-age", 0, "--root", merged.root, "--json")
    assert json.loads(called.out)["items"] == []


def test_what_is_not_there_is_said_in_one_line(cli: Cli, merged: Merged, tmp_path: Path) -> None:
    called = cli("publish", "quickstart", tmp_path / "model", "--root", merged.root)
    assert called.code == 2
    assert "not trained yet; llm-fuse run quickstart" in called.err
    called = cli("publish", "build_corpus", tmp_path / "model", "--root", merged.root)
    assert called.code == 2
    assert called.err.count("\n") == 1
    called = cli("publish", merged.model.address, "hf://not/a/repository", "--root", merged.root)
    assert called.code == 2
