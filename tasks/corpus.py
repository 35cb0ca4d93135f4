"""The corpus: documents from anywhere, cut into pieces of bounded size, grouped into shards that every model reads.

Cutting looks at the text alone, never at a model, so adding a source re-reads nothing. The pieces of a
document, joined, are the document byte for byte. A shard's identity is the digest of its pieces.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, cast

import fsspec
from pydantic import AfterValidator, Field

from fusion_core.spec import PINNED, Name, Spec
from tasks.artifacts import CorpusRef, Runtime, TextsRef
from tasks.documents import (
    SHARDS,
    Document,
    digest_of,
    split_text,
    text_id,
    write_documents,
)
from tasks.hub import check_repo_id, check_revision, remember_commit, resolve_commit
from tasks.secrets import Address
from tasks.step import Output, step
from tasks.store import Store, open_store
from tasks.transient import is_transient


class Installed(Spec):
    """The quickstart's texts: what this Python installation carries."""

    kind: Literal["installed"] = "installed"
    split: Literal["sources", "target", "fusion", "validation", "test"] = Field(
        "fusion", title="Split", description="Which part; no file is in two of them."
    )
    domains: tuple[str, ...] = Field((), title="Domains", description="Only these; empty for all.")
    max_bytes_per_domain: int | None = Field(
        None, gt=0, title="Bytes per domain", description="At most; empty for all."
    )


class HubDataset(Spec):
    """A data set of the Hugging Face hub, streamed."""

    kind: Literal["hub_dataset"] = "hub_dataset"
    id: Annotated[str, AfterValidator(check_repo_id)] = Field(title="Repository", description="owner/name on the hub.")
    revision: Annotated[str, AfterValidator(check_revision), PINNED] = Field(
        "main", title="Revision", description="Branch, tag or commit; resolved to a commit at launch."
    )
    config: str | None = Field(
        None, title="Configuration", description="The data set's configuration; empty for its only one."
    )
    split: str = Field("train", title="Split", description="Which part of the data set.")
    text_field: str = Field("text", title="Text column", description="The column that holds the text.")
    domain: Name = Field("text", title="Domain", description="The name under which evaluation reports these documents.")


class Files(Spec):
    """Files by path or glob, on disk or any fsspec URL: a document per text file, or per row of Parquet and JSONL."""

    kind: Literal["files"] = "files"
    paths: Annotated[tuple[Address, ...], PINNED] = Field(
        title="Paths", description="Files or globs: `texts/*.txt`, `s3://bucket/corpus/*.parquet`.", min_length=1
    )
    format: Literal["text", "jsonl", "parquet"] = Field(
        "text", title="Format", description="A document per file of text, or per row of the others."
    )
    text_field: str = Field(
        "text", title="Text column", description="The column that holds the text, in JSONL and Parquet."
    )
    domain: Name = Field("text", title="Domain", description="The name under which evaluation reports these documents.")


DocumentSource = Annotated[Installed | HubDataset | Files, Field(discriminator="kind")]


class CorpusSpec(Spec):
    """Which documents, and how they are cut."""

    documents: tuple[DocumentSource, ...] = Field(
        title="Documents", min_length=1, description="Where the text comes from; one after the other."
    )
    max_bytes: int = Field(
        2048, ge=16, title="Bytes per piece", description="Longer documents are cut; must fit every model's window."
    )
    shard_bytes: int = Field(
        4_000_000, gt=0, title="Bytes per shard", description="A shard is the unit of caching and retrying."
    )
    max_documents: int | None = Field(
        None, gt=0, title="Documents at most", description="Only the first ones; empty for all."
    )
    short_documents: Literal["refuse", "drop"] = Field(
        "refuse",
        title="Documents under two characters",
        description="They predict nothing: an error, or left out and counted.",
    )


def pin_documents(spec: CorpusSpec, texts: list[TextsRef], *, runtime: Runtime) -> dict[str, object]:
    """What the documents are today: digests of the files' contents (an ETag on remote stores), commits of data sets."""
    pins: dict[str, object] = {}
    for number, source in enumerate(spec.documents):
        if isinstance(source, Files):
            pins[str(number)] = [_content_mark(path) for path in _expand(source.paths)]
        elif isinstance(source, HubDataset):
            pins[str(number)] = resolve_commit("dataset", source.id, source.revision, open_store(runtime))
    return pins


@step(version=1, pin=pin_documents)
def build_corpus(spec: CorpusSpec, texts: list[TextsRef], *, runtime: Runtime, out: Output) -> CorpusRef:
    """The corpus as Parquet shards; `texts` holds the collected texts for its `installed` entries, in their order."""
    counts = {"documents": 0, "pieces": 0, "bytes": 0, "dropped": 0}
    marks, domains = [], dict[str, int]()
    documents = _documents(spec, texts, open_store(runtime), out.pins)
    for index, pieces in enumerate(_shards(_pieces(documents, spec, counts), spec.shard_bytes)):
        marks.append({"digest": digest_of(pieces), "pieces": len(pieces)})
        write_documents(out.dir, index, pieces)
        for piece in pieces:
            counts["bytes"] += len(piece.text.encode())
            domains[piece.domain] = domains.get(piece.domain, 0) + 1
    if not marks:
        raise ValueError(
            "corpus.documents: expected at least one document with text, found none; check paths, split and domains"
        )
    for number, source in enumerate(spec.documents):
        if isinstance(source, HubDataset):
            remember_commit("dataset", source.id, source.revision, str(out.pins[str(number)]), open_store(runtime))
    (out.dir / SHARDS).write_text(json.dumps(marks))
    out.facts |= {**counts, "shards": len(marks), "pieces_per_domain": domains}
    return out.ref(CorpusRef, num_shards=len(marks))


def _documents(
    spec: CorpusSpec, texts: list[TextsRef], store: Store, pins: Mapping[str, object]
) -> Iterator[tuple[str, Document]]:
    """(where it came from, document) of every source, in order; the place is for messages."""
    collected = iter(texts)
    for number, source in enumerate(spec.documents):
        match source:
            case Installed():
                yield from _read_installed(source, store, next(collected))
            case HubDataset():
                yield from _read_hub(source, str(pins[str(number)]))
            case Files():
                for path in _expand(source.paths):
                    yield from _read_file(path, source)


def _pieces(documents: Iterable[tuple[str, Document]], spec: CorpusSpec, counts: dict[str, int]) -> Iterator[Document]:
    for where, document in documents:
        if spec.max_documents is not None and counts["documents"] == spec.max_documents:
            return
        if len(document.text) < 2:
            if spec.short_documents == "refuse":
                raise ValueError(
                    f"{where}: expected a document of two characters or more, found {len(document.text)}; "
                    "remove it or set corpus.short_documents to drop"
                )
            counts["dropped"] += 1
            continue
        parts = split_text(document.text, spec.max_bytes)
        counts["documents"] += 1
        counts["pieces"] += len(parts)
        for i, part in enumerate(parts):
            yield Document(document.id, part, document.domain, final=i == len(parts) - 1)


def _shards(pieces: Iterable[Document], shard_bytes: int) -> Iterator[list[Document]]:
    shard: list[Document] = []
    size = 0
    for piece in pieces:
        length = len(piece.text.encode())
        if shard and size + length > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(piece)
        size += length
    if shard:
        yield shard


def _read_installed(source: Installed, store: Store, texts: TextsRef) -> Iterator[tuple[str, Document]]:
    import pyarrow.parquet as pq

    name = f"{source.split}.parquet"
    used: dict[str, int] = {}
    for row in pq.read_table(store.fetch(texts, [name]) / name).to_pylist():
        domain = row["domain"]
        if source.domains and domain not in source.domains:
            continue
        length = len(row["text"].encode())
        if source.max_bytes_per_domain is not None and used.get(domain, 0) + length > source.max_bytes_per_domain:
            continue
        used[domain] = used.get(domain, 0) + length
        yield row["source"], Document(row["id"], row["text"], domain)


def _read_hub(source: HubDataset, commit: str) -> Iterator[tuple[str, Document]]:
    from datasets import load_dataset

    rows = load_dataset(source.id, source.config, split=source.split, revision=commit, streaming=True)
    yield from _rows(f"{source.id} ({source.split})", rows, source.text_field, source.domain)


def _read_file(path: str, source: Files) -> Iterator[tuple[str, Document]]:
    if source.format == "text":
        with fsspec.open(path, "rb") as stream:
            data = cast(bytes, stream.read())
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset {error.start}; "
                "convert the file first"
            ) from error
        yield path, Document(text_id(text), text, source.domain)
        return
    yield from _rows(path, _parsed(path, source.format), source.text_field, source.domain)


def _parsed(path: str, format: str) -> Iterator[dict[str, object]]:
    from datasets import load_dataset

    kind = "json" if format == "jsonl" else "parquet"
    try:
        yield from load_dataset(kind, data_files=[path], split="train", streaming=True)
    except Exception as error:  # each reader has errors of its own
        if is_transient(error):
            raise
        found = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: expected {format} with UTF-8 text, found none that can be read: {found}") from error


def _rows(
    where: str, rows: Iterable[dict[str, object]], text_field: str, domain: str
) -> Iterator[tuple[str, Document]]:
    for number, row in enumerate(rows):
        text = row.get(text_field)
        if not isinstance(text, str):
            found = f"columns {', '.join(row)}" if text_field not in row else type(text).__name__
            raise ValueError(
                f"{where}, row {number}: expected text in column {text_field!r}, found {found}; set text_field"
            )
        yield f"{where}, row {number}", Document(text_id(text), text, domain)


def _expand(paths: Iterable[str]) -> list[str]:
    """Every file that the paths and globs name, sorted within each; raises `ValueError` when one names none."""
    found = []
    for path in paths:
        try:
            fs, plain = fsspec.core.url_to_fs(path)
            matches = sorted(fs.glob(plain)) if fsspec.core.has_magic(plain) else [plain] if fs.isfile(plain) else []
        except Exception as error:  # each kind of address has errors of its own
            if is_transient(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"corpus.documents.paths: expected files at {path!r}, found {reason}") from error
        if not matches:
            raise ValueError(f"corpus.documents.paths: expected files at {path!r}, found none; check the path")
        found += [fs.unstrip_protocol(match) for match in matches]
    return found


def _content_mark(path: str) -> str:
    fs, plain = fsspec.core.url_to_fs(path)
    info = fs.info(plain)
    if etag := info.get("ETag"):
        return f"etag:{etag}"
    with fs.open(plain, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
