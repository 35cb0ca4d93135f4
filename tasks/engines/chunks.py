"""A shard in chunks of documents: tokenised ahead, scored, and kept as soon as they are finished.

Where chunks begin depends on the texts alone, and batches never cross them, so that a shard that was finished in two
attempts has the same bytes as one that was finished in one (on a CPU, and with the same tokens per batch).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file

from fusion_core.distributions import concatenate
from fusion_core.types import Scored, TokenDist, Tokens
from tasks.corpora.documents import Document
from tasks.engines import Problem
from tasks.storage.partial import Parts

CHUNK_BYTES = 2**18
_ROWS, _ABOUT = "rows.safetensors", "about.json"

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Chunk:
    """Some documents of a shard as one model read them; `problems` by their number in the chunk."""

    scored: Scored
    problems: dict[int, Problem]

    def write(self, folder: Path) -> None:
        """Writes the chunk as it is: what is packed for good is the whole shard, however many attempts made it."""
        tokens, dist = self.scored.tokens, self.scored.dist
        values = {f"tokens.{name}": value for name, value in vars(tokens).items()} | {"nll": self.scored.nll}
        values |= {f"dist.{name}": value for name, value in vars(dist).items() if name != "vocab_size"}
        save_file({name: value.contiguous() for name, value in values.items()}, folder / _ROWS)
        about = {"vocab_size": dist.vocab_size, "problems": self.problems}
        (folder / _ABOUT).write_text(json.dumps(about))

    @classmethod
    def read(cls, folder: Path) -> "Chunk":
        """A chunk as written by `write`."""
        values, about = load_file(folder / _ROWS), json.loads((folder / _ABOUT).read_text())
        parts = {
            part: {name.removeprefix(part): value for name, value in values.items() if name.startswith(part)}
            for part in ("tokens.", "dist.")
        }
        dist = TokenDist(**parts["dist."], vocab_size=about["vocab_size"])
        problems = {int(number): Problem(*problem) for number, problem in about["problems"].items()}
        return cls(Scored(Tokens(**parts["tokens."]), dist, values["nll"]), problems)


def cut_chunks(documents: Sequence[Document], chunk_bytes: int = CHUNK_BYTES) -> list[list[Document]]:
    """The documents in order, in chunks of at most so many bytes of text, or one document; no documents: one chunk."""
    chunks: list[list[Document]] = [[]]
    size = 0
    for document in documents:
        length = document.num_bytes
        if chunks[-1] and size + length > chunk_bytes:
            chunks.append([])
            size = 0
        chunks[-1].append(document)
        size += length
    return chunks


def score_chunks(
    chunks: Sequence[list[Document]],
    encode: Callable[[list[Document]], tuple[A, dict[int, Problem]]],
    score: Callable[[A, int], tuple[Scored, dict[int, Problem]]],
    parts: Parts,
) -> Iterator[tuple[Chunk, bool]]:
    """Every chunk in order, and whether it was found finished.

    While one is scored the next is encoded and the one before is written, each by a thread of its own. The last chunk
    is not kept by itself: the whole shard is there when it is.
    score: takes a chunk as it was encoded and the number of tokens before it in the shard.
    """
    before = number = 0
    while number < len(chunks) - 1 and (folder := parts.find(str(number))) is not None:
        chunk = Chunk.read(folder)
        before += len(chunk.scored.tokens.ids)
        number += 1
        yield chunk, True
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, "write-chunks") as writer:
        for read, problems in _ahead(encode, chunks[number:]):
            scored, found = score(read, before)
            chunk = Chunk(scored, found | problems)  # an emptied document keeps the reason for being emptied
            before += len(scored.tokens.ids)
            if writing is not None:
                writing.result()  # at most one waits
            if number < len(chunks) - 1:
                writing = writer.submit(parts.save, str(number), chunk.write)
            number += 1
            yield chunk, False


def join_chunks(chunks: Sequence[Scored]) -> Scored:
    """The shard that the chunks are."""
    offsets = [torch.zeros(1, dtype=torch.int64)]
    for chunk in chunks:
        offsets.append(chunk.tokens.doc_offsets[1:] + offsets[-1][-1])
    tokens = Tokens(
        ids=torch.cat([chunk.tokens.ids for chunk in chunks]),
        boundaries=torch.cat([chunk.tokens.boundaries for chunk in chunks]),
        doc_offsets=torch.cat(offsets),
    )
    return Scored(tokens, concatenate([chunk.dist for chunk in chunks]), torch.cat([chunk.nll for chunk in chunks]))


def _ahead(function: Callable[[A], B], values: Iterable[A]) -> Iterator[B]:
    """`map`, each result made by another thread while the one before is used."""
    with ThreadPoolExecutor(1, "encode-chunks") as pool:
        pending: Future[B] | None = None
        for value in values:
            following = pool.submit(function, value)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
