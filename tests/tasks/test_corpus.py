"""Corpora from files: what is read, how it is sharded, what is refused."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from botocore.session import get_session
from pydantic import ValidationError

from tasks.artifacts import CorpusRef, Runtime, ShardRef
from tasks.corpora.documents import Document, read_documents, shards_of, text_id
from tasks.corpora.overlap import Decontamination, ExactDuplicates, NearDuplicates
from tasks.corpus import LEFT_OUT, CorpusSpec, Files, Mixture, build_corpus
from tasks.storage.store import open_store

COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "store"))


def _corpus(path: Path, **fields: object) -> CorpusSpec:
    source = Files(paths=(str(path),), format=fields.pop("format", "text"))  # type: ignore[arg-type]
    return CorpusSpec(documents=(source,), **({"sharding": "by_size"} | fields))  # type: ignore[arg-type]


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


def _facts(corpus: CorpusRef, runtime: Runtime) -> dict[str, Any]:
    manifest = open_store(runtime).manifest(corpus)
    assert manifest is not None
    return manifest.facts


def _texts(corpus: CorpusRef, runtime: Runtime) -> list[str]:
    return [piece.text for shard in _pieces(corpus, runtime) for piece in shard]


def test_documents_added_to_a_corpus_leave_most_of_its_shards_as_they_are(tmp_path: Path, runtime: Runtime) -> None:
    def build() -> list[str]:
        spec = _corpus(tmp_path / "*.txt", sharding="by_content", shard_bytes=500)
        return [shard.identity for shard in shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)]

    for number in range(200):
        (tmp_path / f"{number:03}.txt").write_text(f"document number {number}, " * 3)
    before = build()
    (tmp_path / "100b.txt").write_text("one more in the middle")
    after = build()
    assert len(before) > 20
    assert len(set(after) - set(before)) <= 3


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_compressed_files_are_read_as_what_is_inside(tmp_path: Path, runtime: Runtime, ending: str, form: str) -> None:
    texts = ["first\n", "zweites ü\n"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    half = len(lines) // 2
    for number, part in enumerate([lines[:half], lines[half:]]):  # two members in one file are one content
        with (tmp_path / f"rows.{form}.{ending}").open("ab" if number else "wb") as file:
            file.write(COMPRESS[ending](part.encode()))
    corpus = build_corpus.fn(_corpus(tmp_path / f"*.{ending}", format=form), [], runtime=runtime)
    assert _texts(corpus, runtime) == ([lines] if form == "text" else texts)


def test_exact_and_near_duplicates_are_left_out_and_counted(tmp_path: Path, runtime: Runtime) -> None:
    words = [f"word{i}" for i in range(300)]
    texts = [" ".join(words), " ".join([*words, "end"]), " ".join(words), "something else"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for rule, kept in ((None, [0, 1, 2, 3]), (ExactDuplicates(), [0, 1, 3]), (NearDuplicates(), [0, 3])):
        spec = _corpus(tmp_path / "rows.jsonl", format="jsonl", duplicates=rule, max_bytes=4096)
        corpus = build_corpus.fn(spec, [], runtime=runtime)
        assert _texts(corpus, runtime) == [texts[i] for i in kept]
        assert _facts(corpus, runtime)["duplicates"] == 4 - len(kept)


def test_documents_with_held_out_text_are_left_out_and_listed(tmp_path: Path, runtime: Runtime) -> None:
    question = " ".join(f"asked{i}" for i in range(30))
    (tmp_path / "test.txt").write_text(f"held out: {question}")
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"text": question.replace("asked", "task")}))
    for name, text in [("a", "clean"), ("b", f"copied {question}"), ("c", question.replace("asked", "task"))]:
        (tmp_path / f"train-{name}.txt").write_text(text)
    held_out = build_corpus.fn(_corpus(tmp_path / "test.txt", max_bytes=50, shard_bytes=60), [], runtime=runtime)
    shards = shards_of(held_out, runtime)
    assert len(shards) > 1  # an n-gram may lie across shards

    def build(**rule: Any) -> CorpusRef:
        spec = _corpus(tmp_path / "train-*.txt", decontamination=Decontamination(**rule))
        return build_corpus.fn(spec, [], shards, runtime=runtime)

    corpus = build()
    assert _texts(corpus, runtime) == ["clean", question.replace("asked", "task")]
    assert _facts(corpus, runtime)["held_out_ids"] == [text_id(f"copied {question}")]
    assert _facts(corpus, runtime)["held_out_without_ngrams"] == 0
    listed = json.loads((open_store(runtime).fetch(corpus) / LEFT_OUT).read_text())
    assert [(entry["id"], entry["reason"]) for entry in listed] == [(text_id(f"copied {question}"), "held out")]
    assert "train-b.txt" in listed[0]["where"]
    tasks = Files(paths=(str(tmp_path / "tasks.jsonl"),), format="jsonl")
    assert _texts(build(against=(tasks,)), runtime) == ["clean"]
    before = build(against=(tasks,))
    assert _facts(build(ngram=40, against=(tasks,)), runtime)["held_out_without_ngrams"] == 2
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"text": "another task"}))
    assert build(against=(tasks,)) != before


def test_decontamination_without_held_out_text_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(ValueError, match="expected held-out text to compare with, found none"):
        build_corpus.fn(_corpus(tmp_path / "a.txt", decontamination=Decontamination()), [], runtime=runtime)


def test_a_mixture_has_its_shares_of_bytes_and_ends_with_the_first_that_ends(tmp_path: Path, runtime: Runtime) -> None:
    sources = []
    for name, length, count in (("short", 20, 4000), ("long", 200, 1000)):
        rows = [json.dumps({"text": f"{name} {i} ".ljust(length, "x")}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        sources.append(Files(paths=(str(tmp_path / f"{name}.jsonl"),), format="jsonl", domain=name))

    def build(seed: int) -> list[Document]:
        spec = CorpusSpec(documents=tuple(sources), mixture=Mixture(weights=(3, 1), seed=seed))
        corpus = build_corpus.fn(spec, [], runtime=runtime)
        return [piece for shard in _pieces(corpus, runtime) for piece in shard]

    mixed = build(0)
    of_short, all_bytes = (
        sum(len(p.text) for p in mixed if p.domain in names) for names in (["short"], ["short", "long"])
    )
    assert abs(of_short / all_bytes - 0.75) < 0.02
    assert sum(p.domain == "short" for p in mixed) == 4000
    for name in ("short", "long"):
        numbers = [int(p.text.split()[1]) for p in mixed if p.domain == name]
        assert numbers == list(range(len(numbers)))
    assert build(0) == mixed
    assert build(1) != mixed


def test_a_mixture_needs_a_weight_per_entry(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="expected a weight per entry of documents, 1, found 2"):
        _corpus(tmp_path, mixture=Mixture(weights=(1, 2)))


def test_globs_in_a_bucket_see_what_was_added_and_replaced_meanwhile(
    s3_root: str, s3_endpoint: str, runtime: Runtime
) -> None:
    fs = fsspec.filesystem("s3")  # another client than ours, which fills its own listing cache
    fs.pipe_file(f"{s3_root}/texts/a.txt", b"first text")
    spec = _corpus(Path("unused"), sharding="by_content").model_copy(
        update={"documents": (Files(paths=(f"{s3_root}/texts/*.txt*",)),)}
    )
    assert _texts(build_corpus.fn(spec, [], runtime=runtime), runtime) == ["first text"]
    elsewhere = get_session().create_client("s3", endpoint_url=s3_endpoint)
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    elsewhere.put_object(Bucket=bucket, Key=f"{prefix}/texts/b.txt.gz", Body=gzip.compress(b"second text"))
    assert _texts(build_corpus.fn(spec, [], runtime=runtime), runtime) == ["first text", "second text"]
    elsewhere.put_object(Bucket=bucket, Key=f"{prefix}/texts/a.txt", Body=b"other text")
    assert _texts(build_corpus.fn(spec, [], runtime=runtime), runtime) == ["other text", "second text"]


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


@pytest.mark.parametrize(
    ("name", "form", "content", "sentence"),
    [
        ("a.txt.gz", "text", b"not gzip", "expected a file of text, found none that can be read"),
        ("a.txt.zst", "text", b"not zstandard", "expected a file of text, found none that can be read"),
        ("a.jsonl.bz2", "jsonl", b"not bzip", "expected jsonl with UTF-8 text, found none that can be read"),
        ("a.jsonl.xz", "jsonl", lzma.compress(b'{"text": "whole"}')[:-20], "expected jsonl with UTF-8 text, found"),
        ("a.jsonl", "jsonl", b'{"text": "ab"}\n{"text": ', "line 2: expected a JSON object per line"),
        ("a.jsonl", "jsonl", b"[1]", "line 1: expected a JSON object per line .*, found list"),
        ("a.parquet", "parquet", b"not parquet", "expected parquet with UTF-8 text, found none that can be read"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, runtime: Runtime, name: str, form: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*: .*{sentence}|{re.escape(name)}, {sentence}"):
        build_corpus.fn(_corpus(tmp_path / name, format=form), [], runtime=runtime)


def test_a_missing_column_names_the_columns_found(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "text"}\n')
    with pytest.raises(ValueError, match="expected text in column 'text', found columns body; set text_field"):
        build_corpus.fn(_corpus(tmp_path / "rows.jsonl", format="jsonl"), [], runtime=runtime)


def test_a_lone_surrogate_is_refused_with_its_row(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good \\ud83d\\ude00"}\n{"text": "bad \\ud83d tail"}\n')
    sentence = r"rows\.jsonl, row 1: expected text .*, found a lone surrogate U\+D83D at character 4 of 'text'; mend or"
    with pytest.raises(ValueError, match=sentence) as caught:
        build_corpus.fn(_corpus(tmp_path / "rows.jsonl", format="jsonl"), [], runtime=runtime)
    assert "\n" not in str(caught.value)


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
