"""Broken and hostile models, tokenizers, texts and stores: each is refused in a sentence, at the price of its size."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli.exits import USAGE, exit_code
from tasks.artifacts import Manifest, ModelRef, Runtime, StoreError
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download, download_description, select_description, select_files
from tasks.models.folders import LocalModel, load_model, load_vocabulary
from tasks.storage.store import MANIFEST, Store, open_store
from tests.conftest import ModelFactory

Harm = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Where the store lies says nothing about its input."""
    return str(tmp_path / "store")


def holds(name: str, content: str | bytes) -> Harm:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def says(name: str, **fields: Any) -> Harm:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def vocabulary(**ids: int) -> Harm:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["model"]["vocab"] |= ids
        path.write_text(json.dumps(tokenizer))

    return change


def header(length: int | None = None, **tensors: Any) -> bytes:
    """A weight file that is all header."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def indexed(index: object) -> Harm:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def linked(name: str, target: str) -> Harm:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


NOT_NEEDED = header(**{f"{n}{'x' * 99}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(9)})
TERABYTES = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
MODELS: dict[str, tuple[Harm, str]] = {
    "a config that is a list": (holds("config.json", "[]"), r"config\.json can't be read"),
    "a config cut short": (holds("config.json", '{"a":'), r"config\.json can't be read.*not a valid JSON"),
    "a config without end": (holds("config.json", "[" * 100_000), r"config\.json can't be read: .*recursion"),
    "a config of no model": (holds("config.json", "{}"), r"config\.json can't be read: Unrecognized model"),
    "an unknown architecture": (says("config.json", model_type="nope"), r"config\.json can't be read: .*`nope`"),
    "code that isn't there": (says("config.json", model_type="x", auto_map={"AutoConfig": "a.B"}), "trust_remote_code"),
    "words for numbers": (says("config.json", vocab_size="many"), r"config\.json can't be read: .*'vocab_size'"),
    "less than no rows": (says("config.json", vocab_size=-1), "a tokenizer of at most -1 ids.*found 320"),
    "heads of nothing": (says("config.json", num_attention_heads=0), r"config\.json can't be read: .*zero"),
    "numbers of no type": (says("config.json", dtype="float99"), r"config\.json can't be read: .*float99"),
    "a trillion rows": (
        says("config.json", vocab_size=10**12),
        "expected vocab_size of at most 10,000,000 .*found 1,0",
    ),
    "a width past counting": (says("config.json", hidden_size=2**40), "expected hidden_size of at most 1,000,000 in"),
    "layers without end": (says("config.json", num_hidden_layers=10**9), "num_hidden_layers of at most 10,000 in"),
    "more rows than bytes": (says("config.json", vocab_size=9_000_000), "9,000,000 rows, .*found 28 tensors in"),
    "more layers than tensors": (says("config.json", num_hidden_layers=9_000), "9,000 layers .*found 28 tensors in"),
    "wider than its weights": (says("config.json", hidden_size=64), "describes a model that can't be: .*size"),
    "another architecture": (says("config.json", model_type="bert"), "found 4. missing or of another shape"),
    "no bytes": (holds("model.safetensors", b""), r"model\.safetensors is no safetensors file: .*too small"),
    "a header past the file": (holds("model.safetensors", header(2**62)), "no safetensors file: .*header too large"),
    "a header of 90 MB": (holds("model.safetensors", header(90_000_000)), "no safetensors file: .*header length"),
    "a header that isn't JSON": (holds("model.safetensors", struct.pack("<Q", 3) + b"{{{"), "invalid JSON in header"),
    "four claimed terabytes": (holds("model.safetensors", header(a=TERABYTES)), "no safetensors file: .*not fully"),
    "not one weight": (holds("model.safetensors", header()), "found 0 tensors in"),
    "not one that it needs": (holds("model.safetensors", NOT_NEEDED), "found 28 missing or of another shape"),
    "a pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "found only pickles"),
    "an index of nothing": (indexed([]), r"expected a weight_map .* found none that can be read \(TypeError\)"),
    "an index of numbers": (indexed({"weight_map": {"a": 3}}), r"\(without 3\); complete the folder"),
    "an index that leads out": (indexed({"weight_map": {"a": "../x.safetensors"}}), r"beside it, found '\.\./x\.safe"),
    "an index of the root": (indexed({"weight_map": {"a": "/x.safetensors"}}), r"beside it, found '/x\.safetensors'"),
    "a licence that is a key": (
        linked("LICENSE", "/etc/hostname"),
        "expected its own LICENSE, found a link to /etc/ho",
    ),
    "a config that links to itself": (linked("config.json", "config.json"), r"expected a config\.json, found"),
    "weights that lead nowhere": (linked("model.safetensors", "/nowhere"), r"expected model\.safetensors, or .*found"),
}
TOKENIZERS: dict[str, tuple[Harm, str]] = {
    "no bytes": (holds("tokenizer.json", ""), "none that can be read: Expecting value"),
    "half of it": (holds("tokenizer.json", "{"), "none that can be read: Expecting property name"),
    "a list": (holds("tokenizer.json", "[]"), "none that can be read"),
    "without end": (holds("tokenizer.json", "[" * 100_000), "none that can be read: maximum recursion"),
    "settings that are a list": (holds("tokenizer_config.json", "[]"), "none that can be read"),
    "an id below zero": (vocabulary(z=-5), "none that can be read: invalid value: integer `-5`"),
    "an id past all memory": (vocabulary(z=4 * 10**9), "without large gaps, found 32. of them up to 4,000,000,000"),
    "a pattern that isn't one": (
        says("tokenizer.json", pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                                              "invert": False}),
        "none that can be read: .*parenthesis",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tiny_neox: ModelFactory) -> Path:
    return tiny_neox()


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, StoreError)) as refusal:
        call()
    words = str(refusal.value)
    assert re.search(message, words, re.DOTALL), words
    assert exit_code(refusal.value) == USAGE
    assert len(words) < 1500


@pytest.mark.parametrize(("harm", "message"), MODELS.values(), ids=MODELS)
def test_a_broken_model_is_refused(sound: Path, tmp_path: Path, runtime: Runtime, harm: Harm, message: str) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    harm(folder)
    spec = LocalModel(path=str(folder))
    refused(lambda: load_model(open_store(runtime).fetch(download.fn(spec, runtime=runtime))), message)


@pytest.mark.parametrize(("harm", "message"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_broken_tokenizer_is_refused_with_its_model_and_alone(
    sound: Path, tmp_path: Path, runtime: Runtime, harm: Harm, message: str
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    harm(folder)
    spec = LocalModel(path=str(folder))
    refused(lambda: download.fn(spec, runtime=runtime), message)
    described = download_description.fn(spec, runtime=runtime)
    refused(lambda: load_vocabulary(open_store(runtime).fetch(described)), message)


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/config.json", "a/../../config.json", "..\\config.json", "a/model.safetensors", "x\0.py"],
)
def test_names_that_lead_out_are_not_mirrored(name: str) -> None:
    listed = ["config.json", "tokenizer.json", "model.safetensors"]
    for select in (select_files, select_description):
        assert name not in select([*listed, name], "model x", with_code="\0" not in name)


def parquet(**columns: list[Any]) -> Harm:
    return lambda path: pq.write_table(pa.table(columns), path)


TEXTS: dict[str, tuple[str, str | bytes | Harm, str]] = {
    "numbers for text": ("parquet", parquet(text=[1]), "row 0: expected text in column 'text', found int"),
    "no such column": ("parquet", parquet(words=["ab"]), "row 0: expected text in column 'text', found columns words"),
    "words for Parquet": ("parquet", "not parquet", "expected parquet .*none that can be read: .*magic bytes"),
    "an empty table": ("parquet", "", "expected parquet .*none that can be read: .*0 bytes"),
    "half a line": (
        "jsonl",
        '{"text": "ab"}\n{oops',
        r"line 2: expected a JSON object per line \(jsonl\), found Expecting",
    ),
    "numbers for lines": ("jsonl", "3\n", r"line 1: expected a JSON object per line \(jsonl\), found int"),
    "nothing for text": ("jsonl", '{"text": null}\n', "row 0: expected text in column 'text', found NoneType"),
    "lists without end": ("jsonl", '{"text":' + "[" * 5000, "line 1: expected a JSON object .* nested too deep"),
    "another encoding of lines": (
        "jsonl",
        b'{"text": "\xff"}\n',
        "line 1: expected UTF-8 text, found byte 0xff at offset 10; convert",
    ),
    "half a letter": (
        "jsonl",
        '{"text": "ab\\ud800"}\n',
        "row 0: .*found a lone surrogate U.D800 at character 2 of 'text'; mend",
    ),
    "another encoding": ("text", b"ab\xff", "expected UTF-8 text, found byte 0xff at offset 2; convert"),
    "no letter": ("text", "", "expected a document of two characters or more, found 0"),
    "one letter": ("text", "x", "expected a document of two characters or more, found 1"),
    "a folder": ("text", lambda path: path.mkdir(), "expected files at .*found folders alone; name the files in them"),
    "a link to nothing": ("text", lambda path: path.symlink_to("gone"), "expected files at .*found none"),
}


@pytest.mark.parametrize(("kind", "content", "message"), TEXTS.values(), ids=TEXTS)
def test_a_broken_text_is_refused_by_its_name(
    tmp_path: Path, runtime: Runtime, kind: Any, content: str | bytes | Harm, message: str
) -> None:
    path = tmp_path / "some-text"
    (content if callable(content) else holds("some-text", content))(path if callable(content) else tmp_path)
    spec = CorpusSpec(documents=(Files(paths=(str(path),), format=kind),))
    refused(lambda: build_corpus.fn(spec, [], runtime=runtime), message)
    refused(lambda: build_corpus.fn(spec, [], runtime=runtime), "/some-text")


def test_a_corpus_without_a_document_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "none.jsonl").touch()
    spec = CorpusSpec(documents=(Files(paths=(str(tmp_path / "none.jsonl"),), format="jsonl"),))
    refused(lambda: build_corpus.fn(spec, [], runtime=runtime), "expected at least one document with text, found none")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "expected files at '', found folders alone"),
        ("a\0b", r"expected files at 'a\\x00b', found"),
        ("[", r"expected files at '\[', found"),
        ("x" * 5000, "expected files at 'x+', found .*name too long"),
        ("nowhere://a", "expected files at 'nowhere://a', found Protocol not known: nowhere"),
        ("gs://a/b", "expected files at 'gs://a/b', found .*install gcsfs"),
        ("reference://a", "expected files at 'reference://a', found .*missing 1 required"),
    ],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_a_place_without_text_is_refused_by_its_name(runtime: Runtime, place: str, message: str) -> None:
    spec = CorpusSpec(documents=(Files(paths=(place,)),))
    with pytest.raises(ValueError, match=message):
        build_corpus.fn(spec, [], runtime=runtime)


# ---- stores ---------------------------------------------------------------------------------------------------

REF = ModelRef(step="download", fingerprint="a" * 32)


def manifest(**changes: Any) -> bytes:
    plain = Manifest(
        step="download", version=1, fingerprint="a" * 32, ref=REF, arguments={}, owner="me", started_at="", seconds=0.0
    )
    return json.dumps(json.loads(plain.to_json()) | changes).encode()


def file_at(path: str, **changes: Any) -> bytes:
    return manifest(files={"x": {"path": path, "bytes": 1, "sha256": "0" * 64} | changes})


MANIFESTS: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "the manifest is not a JSON object; delete the folder"),
    "half of it": (manifest()[:40], "the manifest is not a JSON object"),
    "a list": (b"[]", "the manifest is not a JSON object"),
    "without end": (b"[" * 100_000, "the manifest is not a JSON object"),
    "another encoding": (b'{"a": "\xff"}', "the manifest is not a JSON object"),
    "a newer schema": (manifest(schema_version=99), "schema 1 or older, found 99; upgrade llm-fuse"),
    "a schema of words": (manifest(schema_version="1; drop"), "schema 1 or older, found 1; drop"),
    "another's": (manifest(ref={**REF.model_dump(), "step": "train"}), "its own manifest, found one of train/"),
    "a ref that leads out": (manifest(ref={**REF.model_dump(), "step": ".."}), r"the manifest's 'ref\.model\.step'"),
    "an owner that leads out": (manifest(owner="../x"), "the manifest's 'owner' is not valid"),
    "a file above": (file_at("../../x"), "below the artifact's folder, found '../../x'"),
    "a file of the root": (file_at("/etc/passwd"), "below the artifact's folder, found '/etc/passwd'"),
    "a file of another host": (file_at("//host/x"), "below the artifact's folder, found '//host/x'"),
    "a file that is a folder": (file_at("."), r"below the artifact's folder, found '\.'"),
    "a file with a zero": (file_at("a\0b"), r"below the artifact's folder, found 'a\\x00b'"),
    "less than no bytes": (file_at("me/x", bytes=-1), "greater than or equal to 0"),
    "a file that isn't there": (file_at("me/x"), f"download/{'a' * 32}/x: missing"),
}


@pytest.mark.parametrize(("body", "message"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_broken_manifest_is_refused_by_its_address(store: Store, body: bytes, message: str) -> None:
    store.create(f"{REF.address}/{MANIFEST}", body)
    refused(lambda: store.fetch(REF), message)
