"""Asking where things come from on the command line: lineage in all its forms, and pull."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tasks.artifacts import ModelRef, Runtime
from tasks.corpora.documents import list_shards, text_id
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.library.lineage import Library
from tasks.storage.store import open_store
from tests.flows.conftest import Cli
from tests.tasks.publishing.test_provenance import Bench

TEXT = "what the model has read"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Runtime(root=str(tmp_path / "store"), cache_dir=str(tmp_path / "cache")))


@pytest.fixture
def models(bench: Bench, tmp_path: Path) -> list[ModelRef]:
    """Two pupils of one teacher on one real corpus of one document."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    corpus = build_corpus.fn(CorpusSpec(documents=(Files(paths=(str(text),)),)), [], runtime=bench.runtime)
    (shard,) = list_shards(open_store(bench.runtime), corpus)
    return [bench.fuse(bench.model(name), [bench.model("teacher")], shard) for name in ("a", "b")]


@pytest.mark.parametrize("form", ["id", "file"])
def test_a_documents_models_are_found_by_id_and_by_text(
    cli: Cli, bench: Bench, models: list[ModelRef], tmp_path: Path, form: str
) -> None:
    asked = text_id(TEXT) if form == "id" else str(tmp_path / "text.txt")
    called = cli("lineage", "--document", asked, "--root", bench.runtime.root)
    assert called.code == 0, called.err
    assert called.out.startswith("trained on it\n  train pupil")
    assert "stands in" in called.out
    told = json.loads(cli("lineage", "--document", asked, "--root", bench.runtime.root, "--json").out)
    assert sorted(told["trained"]) == sorted(model.address for model in models)
    assert [shard["index"] for shard in told["shards"]] == [0]


def test_a_document_that_nobody_read_is_in_no_corpus(cli: Cli, bench: Bench, models: list[ModelRef]) -> None:
    called = cli("lineage", "--document", "0" * 16, "--root", bench.runtime.root)
    assert (called.code, called.out.strip()) == (0, f"in no corpus of {bench.runtime.root}")


def test_two_artifacts_are_compared_down_to_what_differs(cli: Cli, bench: Bench, models: list[ModelRef]) -> None:
    a, b = (model.address for model in models)
    called = cli("lineage", "--compare", a, b, "--root", bench.runtime.root)
    assert called.code == 0, called.err
    assert 'they differ first in\nmodel > id: "owner/a" against "owner/b"' in called.out
    told = json.loads(cli("lineage", "--compare", a, b, "--root", bench.runtime.root, "--json").out)
    assert [step[0] for step in told["differences"][0]["trail"]] == ["", "model"]
    assert "the same artifact" in cli("lineage", "--compare", a, a, "--root", bench.runtime.root).out


@pytest.mark.parametrize("form", ["prov", "openlineage"])
def test_lineage_is_exported_to_a_file_that_is_not_overwritten(
    cli: Cli, bench: Bench, models: list[ModelRef], tmp_path: Path, form: str
) -> None:
    file = tmp_path / "lineage.json"
    words = ("lineage", models[0].address, "--export", form, "-o", file, "--root", bench.runtime.root)
    assert cli(*words).code == 0
    text = file.read_text()
    told = json.loads(text)["@graph"] if form == "prov" else [json.loads(line) for line in text.splitlines()]
    assert len(told) > 10
    assert models[0].address in text
    assert cli(*words).code == 2
    assert file.read_text() == text


def test_a_model_is_pulled_with_its_lineage(cli: Cli, bench: Bench, models: list[ModelRef], tmp_path: Path) -> None:
    here = tmp_path / "here"
    called = cli("pull", f"{bench.runtime.root}/{models[0].address}", "--root", here)
    assert called.code == 0, called.err
    assert called.out == f"pulled {models[0]}; records of 6 artifacts it was made from\n"
    assert set(Library.load(open_store(Runtime(root=str(here)))).manifests) == {models[0].address}
    shown = cli("lineage", models[0].address, "--root", here)
    assert "elsewhere" in shown.out
    assert "missing" not in shown.out
    assert cli("verify", "--root", here).code == 0
    assert cli("gc", "--min-age", 0, "--root", here).out.strip() == "nothing to remove"


@pytest.mark.parametrize(
    "words", [(), ("a", "b"), ("--compare", "a"), ("a", "--document", "x"), ("--compare", "a", "b", "--export", "prov")]
)
def test_what_cannot_be_meant_is_said_in_one_line(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    called = cli("lineage", *words, "--root", tmp_path)
    assert called.code == 2
    assert called.err.startswith("error: lineage: expected one REF, two with --compare, or --document alone")


@pytest.fixture
def endpoint() -> Iterator[HTTPServer]:
    """Takes events as Marquez does, from whoever has the key."""
    taken: list[dict[str, object]] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_known = self.headers["Authorization"] == "Bearer opener"
            if is_known:
                taken.append(json.loads(body))
            self.send_response(201 if is_known else 401)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Taking) as server:
        server.taken = taken
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_openlineage_events_are_sent_to_an_endpoint(
    cli: Cli, bench: Bench, models: list[ModelRef], endpoint: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{endpoint.server_port}/api/v1/lineage"
    words = ("lineage", models[0].address, "--export", "openlineage", "--root", bench.runtime.root)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "opener\n")  # as a mounted file has it
    called = cli(*words, "-o", url)
    assert called.code == 0, called.err
    assert endpoint.taken == [json.loads(line) for line in cli(*words).out.splitlines()]
    assert called.err.strip() == f"sent {len(endpoint.taken)} events about {len(endpoint.taken) // 2} artifacts"

    monkeypatch.setenv("OPENLINEAGE_API_KEY", "somebody")
    refused = cli(*words, "-o", url)
    assert refused.code == 1
    assert "found HTTP 401 after 0 of them; check the address and OPENLINEAGE_API_KEY" in refused.err
    assert "somebody" not in refused.err


def test_an_endpoint_takes_no_prov(cli: Cli, bench: Bench, models: list[ModelRef]) -> None:
    words = (
        "lineage",
        models[0].address,
        "--export",
        "prov",
        "--root",
        bench.runtime.root,
        "-o",
        "http://127.0.0.1:1/",
    )
    called = cli(*words)
    assert (called.code, called.err.count("\n")) == (2, 1)
    assert "endpoints take --export openlineage" in called.err


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("http://127.0.0.1:1/?api_key=canary-in-address", ""),
        ("http://127.0.0.1:1/", "canary\nkey"),
        ("http://h/", "canàry"),
    ],
)
def test_no_secret_is_sent_where_it_shows_nor_shown_where_it_cannot_be_sent(
    cli: Cli, bench: Bench, models: list[ModelRef], monkeypatch: pytest.MonkeyPatch, address: str, key: str
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", key)
    words = ("lineage", models[0].address, "--export", "openlineage", "--root", bench.runtime.root)
    called = cli(*words, "-o", address)
    assert (called.code, called.err.count("\n")) == (2, 1)
    assert "can" not in called.err.replace("cannot", "")
