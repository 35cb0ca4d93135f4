"""Documents and shards: what every model reads, and how it lies in the store."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts import CorpusRef, Runtime, ShardRef, canonical_json
from tasks.storage.store import Store, open_store

SHARDS = "shards.json"


@dataclass(frozen=True)
class Document:
    """A piece of a document: `final` when the document ends with it. `id` is the document's, shared by its pieces.

    messages: all of a conversation, tools included, as JSON; it is never cut, and its `text` is what the assistant says
        (`tasks.corpora.conversations`). Empty for plain text.
    """

    id: str
    text: str
    domain: str
    final: bool = True
    messages: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes that a model reads: of the text, or of all messages and tools."""
        return len((self.messages or self.text).encode())


def shards_of(corpus: CorpusRef, runtime: Runtime) -> list[ShardRef]:
    """The refs of a built corpus's shards, in order; empty for a corpus that has not been built."""
    return [] if corpus.num_shards == 0 else list_shards(open_store(runtime), corpus)


def list_shards(store: Store, corpus: CorpusRef) -> list[ShardRef]:
    """The refs of a built corpus's shards, in order. Raises `StoreError` where the store doesn't hold it whole."""
    marks = json.loads((store.fetch(corpus, [SHARDS]) / SHARDS).read_text())
    return [
        ShardRef(step=corpus.step, fingerprint=corpus.fingerprint, index=i, digest=mark["digest"])
        for i, mark in enumerate(marks)
    ]


def holds_document(store: Store, shard: ShardRef, document: str) -> bool:
    """Whether a piece of the document with this id is in the shard; reads the shard's ids alone."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    name = _shard_name(shard.index)
    ids = pq.read_table(store.fetch(shard, [name]) / name, columns=["id"]).column("id")
    return bool(pc.any(pc.equal(ids, document)).as_py())


def read_documents(store: Store, shard: ShardRef) -> list[Document]:
    """The pieces of one shard, in order."""
    import pyarrow.parquet as pq

    name = _shard_name(shard.index)
    rows = pq.read_table(store.fetch(shard, [name]) / name).to_pylist()
    return [Document(**row) for row in rows]


def split_text(text: str, max_bytes: int) -> list[str]:
    """The text cut into pieces of at most `max_bytes` UTF-8 bytes, each character whole; joined they are the text.

    A cut falls behind a line break or else a space where one lies in the last quarter of the piece, and
    between two characters otherwise. An empty text gives no piece.
    """
    data, pieces, start = text.encode(), [], 0
    while start < len(data):
        stop = min(start + max_bytes, len(data))
        if stop < len(data):
            stop = _cut(data, start, stop)
        pieces.append(data[start:stop].decode())
        start = stop
    return pieces


def _cut(data: bytes, start: int, stop: int) -> int:
    floor = stop - (stop - start) // 4
    for separator in (b"\n", b" "):
        found = data.rfind(separator, floor, stop)
        if found >= 0:
            return found + 1
    while data[stop] & 0xC0 == 0x80:  # inside a character
        stop -= 1
    return stop


def text_id(text: str) -> str:
    """A document's stable id: 16 hex digits of its content's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(pieces: list[Document]) -> str:
    """The identity of a shard: a digest of everything its pieces say."""
    content = [[p.id, p.text, p.domain, p.final, *([p.messages] if p.messages else [])] for p in pieces]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def write_documents(folder: Path, index: int, pieces: list[Document]) -> None:
    """Writes one shard as Parquet, with a column of messages where a piece has any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([vars(piece) for piece in pieces])
    plain = not any(piece.messages for piece in pieces)
    pq.write_table(table.drop_columns("messages") if plain else table, folder / _shard_name(index))
