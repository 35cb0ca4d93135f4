"""Corpora from files: what is read, how it is sharded, what is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tasks.artifacts import CorpusRef, Runtime, ShardRef
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.documents import Document, read_documents, shards_of
from tasks.store import open_store


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "store"))


def _corpus(path: Path, **fields: object) -> CorpusSpec:
    source = Files(paths=(str(path),), format=fields.pop("format", "text"))  # type: ignore[arg-type]
    return CorpusSpec(documents=(source,), **fields)  # type: ignore[arg-type]


def _pieces(corpus: CorpusRef, runtime: Runtime) -> list[list[Document]]:
    return [read_documents(open_store(runtime), shard) for shard in shards_of(corpus, runtime)]


def test_text_jsonl_and_parquet_give_the_same_documents(tmp_path: Path, runtime: Runtime) -> None:
    texts = ["first document\n", "zweites Dokument ü\n"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    found = [
        _pieces(build_corpus.fn(_corpus(tmp_path / path, format=form), [], runtime=runtime), runtime)
        for path, form in [("*.txt", "text"), ("rows.jsonl", "jsonl"), ("rows.parquet", "parquet")]
    ]
    assert [piece.text for piece in found[0][0]] == texts
    assert found[0] == found[1] == found[2]


def test_shards_are_bounded_in_bytes_and_pieces_marked_final(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 30)
    corpus = build_corpus.fn(_corpus(tmp_path / "*.txt", max_bytes=40, shard_bytes=80), [], runtime=runtime)
    shards = _pieces(corpus, runtime)
    assert [[len(p.text) for p in shard] for shard in shards] == [[40, 40], [20, 30]]
    assert [p.final for shard in shards for p in shard] == [False, False, True, True]
    assert corpus.num_shards == 2


def test_editing_a_file_makes_another_corpus_but_moving_it_does_not(tmp_path: Path, runtime: Runtime) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one text")
    first = build_corpus.fn(_corpus(path), [], runtime=runtime)
    moved = tmp_path / "elsewhere.txt"
    path.rename(moved)
    assert build_corpus.fn(_corpus(moved), [], runtime=runtime) == first
    moved.write_text("another text")
    assert build_corpus.fn(_corpus(moved), [], runtime=runtime) != first


def test_the_same_texts_in_another_corpus_are_the_same_shards(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "a.txt").write_text("a" * 40)
    (tmp_path / "b.txt").write_text("b" * 40)
    both = build_corpus.fn(_corpus(tmp_path / "*.txt", shard_bytes=40), [], runtime=runtime)
    one = build_corpus.fn(_corpus(tmp_path / "a.txt"), [], runtime=runtime)

    def identities(corpus: CorpusRef) -> list[str]:
        return [shard.identity for shard in shards_of(corpus, runtime)]

    assert identities(both)[:1] == identities(one)
    assert len(set(identities(both))) == 2


def test_max_documents_stops_reading(tmp_path: Path, runtime: Runtime) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    corpus = build_corpus.fn(_corpus(tmp_path / "*.txt", max_documents=2), [], runtime=runtime)
    assert [p.text for shard in _pieces(corpus, runtime) for p in shard] == ["text a", "text b"]


def test_short_documents_are_refused_by_name_or_dropped_and_counted(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "full.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"empty\.txt: expected a document of two characters or more, found 0; .*drop"):
        build_corpus.fn(_corpus(tmp_path / "*.txt"), [], runtime=runtime)
    corpus = build_corpus.fn(_corpus(tmp_path / "*.txt", short_documents="drop"), [], runtime=runtime)
    manifest = open_store(runtime).manifest(corpus)
    assert manifest is not None
    assert (manifest.facts["documents"], manifest.facts["dropped"]) == (1, 1)


def test_bad_text_is_refused_with_its_place(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"latin\.txt: expected UTF-8 text, found byte 0xe9 at offset 3"):
        build_corpus.fn(_corpus(tmp_path / "latin.txt"), [], runtime=runtime)


def test_a_missing_column_names_the_columns_found(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "text"}\n')
    with pytest.raises(ValueError, match="expected text in column 'text', found columns body; set text_field"):
        build_corpus.fn(_corpus(tmp_path / "rows.jsonl", format="jsonl"), [], runtime=runtime)


def test_a_path_that_names_nothing_is_refused_before_anything_is_written(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(ValueError, match=r"expected files at '.*nothing/\*\.txt', found none"):
        build_corpus.fn(_corpus(tmp_path / "nothing" / "*.txt"), [], runtime=runtime)
    assert not list(Path(runtime.root).rglob("MANIFEST.json"))


def test_an_empty_corpus_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="expected at least one document with text, found none"):
        build_corpus.fn(_corpus(tmp_path / "empty.txt", short_documents="drop"), [], runtime=runtime)
    with pytest.raises(ValidationError):
        CorpusSpec(documents=())


def test_a_shard_is_read_alone(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "a.txt").write_text("a" * 90)
    corpus = build_corpus.fn(_corpus(tmp_path / "a.txt", max_bytes=30, shard_bytes=30), [], runtime=runtime)
    shards = shards_of(corpus, runtime)
    folder = open_store(runtime).fetch(corpus, [])
    for path in folder.glob("shard-*.parquet"):
        if "00001" not in path.name:
            path.unlink()
    assert isinstance(shards[1], ShardRef)
    assert [p.text for p in read_documents(open_store(runtime), shards[1])] == ["a" * 30]
