"""Distributions on disk: one safetensors file per (model, shard), ragged rows, narrow types.

    row_offsets i64 · ids u8/u16/i32 · logprobs f16 · tail_logprob f16 · unknown_logprob f16 (left out when nothing is
    unknown) · nll f32 · token_ids i32 · boundaries i32 · doc_offsets i64 · cross_entropy f16 (where there is one)

Everything but the rounding of logprobs to fp16 (relative error 5e-4) survives the round trip. Distributions in
float64, which only the original's rules make, are stored as they are: their last digits decide. Reading is
memory-mapped: `read_*` costs no more than the pages that are touched. The header holds the schema version.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusion_core.alignment import Pair
from fusion_core.pair_counts import PairCounts
from fusion_core.types import Aligned, Fused, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary
from tasks.artifacts import SCHEMA_VERSION, StoreError
from tasks.models import load_encode

SCORED, ALIGNED, FUSED, VOCAB_MAP = "scored.safetensors", "aligned.safetensors", "fused.safetensors", "map.safetensors"
COUNTS = "counts.safetensors"
_PER_ENTRY = ("ids", "logprobs")  # columns of a distribution with a value per kept token; the others: per row
SOURCE_VOCABULARY, TARGET_VOCABULARY = "source_vocabulary.json", "target_vocabulary.json"
TARGET_TOKENIZER = "target_tokenizer.json"


_DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever a file can hold that `write_*` doesn't write becomes a `StoreError`, which names it.

    Nothing is allocated for what a file claims: safetensors maps it, and compares claims with its size.
    """
    try:
        yield
    except _DAMAGE as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise StoreError(
            f"{name}: expected a file as llm-fuse writes it, found {found}; delete its folder to recompute it"
        ) from error


def write_scored(folder: Path, scored: Scored) -> None:
    """Writes `scored.safetensors`."""
    tensors = _pack_dist(scored.dist) | _pack_tokens(scored.tokens) | {"nll": scored.nll.float()}
    _save(folder / SCORED, tensors, vocab_size=scored.dist.vocab_size)


@_reading(SCORED)
def read_scored(folder: Path) -> Scored:
    """A shard as one model read it, as written by `write_scored`."""
    tensors, header = _load(folder / SCORED)
    return Scored(_unpack_tokens(tensors), _unpack_dist(tensors, header["vocab_size"]), tensors["nll"])


def write_aligned(folder: Path, aligned: Aligned) -> None:
    """Writes `aligned.safetensors`."""
    spans = {"span_nll": aligned.span_nll.float(), "span_tokens": aligned.span_tokens.to(torch.int32)}
    tensors = _pack_dist(aligned.dist) | spans
    if aligned.cross_entropy is not None:
        tensors["cross_entropy"] = aligned.cross_entropy.half()
    _save(folder / ALIGNED, tensors, vocab_size=aligned.dist.vocab_size)


@_reading(ALIGNED)
def read_aligned(folder: Path) -> Aligned:
    """One source on the target's rows, as written by `write_aligned`."""
    tensors, header = _load(folder / ALIGNED)
    dist = _unpack_dist(tensors, header["vocab_size"])
    return Aligned(dist, tensors["span_nll"], tensors["span_tokens"].long(), tensors.get("cross_entropy"))


def write_fused(folder: Path, fused: Fused) -> None:
    """Writes `fused.safetensors`."""
    tensors = _pack_dist(fused.dist) | {"winner": fused.winner.to(torch.int16)}
    _save(folder / FUSED, tensors, vocab_size=fused.dist.vocab_size)


@_reading(FUSED)
def read_fused(folder: Path) -> Fused:
    """The teacher of a shard, as written by `write_fused`."""
    tensors, header = _load(folder / FUSED)
    return Fused(_unpack_dist(tensors, header["vocab_size"]), tensors["winner"].long())


class FusedRows:
    """The teacher of a shard, of which only the rows that are asked for are read."""

    @_reading(FUSED)
    def __init__(self, folder: Path) -> None:
        """Opens `fused.safetensors`; nothing but its header is read."""
        self._file, self._header = _open(folder / FUSED)
        self._names = set(self._file.keys()) - {"winner"}
        self.num_rows: int = self._file.get_slice("tail_logprob").get_shape()[0]
        self.vocab_size: int = self._header["vocab_size"]

    def rows(self, start: int, stop: int) -> TokenDist:
        """The rows `start..stop-1`, as `read_fused(folder).dist.rows(start, stop)` gives them."""
        offsets = self._file.get_slice("row_offsets")[start : stop + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        tensors = {"row_offsets": offsets - offsets[0]}
        for name in self._names - {"row_offsets"}:
            tensors[name] = self._file.get_slice(name)[entries if name in _PER_ENTRY else slice(start, stop)]
        return _unpack_dist(tensors, self.vocab_size)


def write_counts(folder: Path, counts: PairCounts) -> None:
    """Writes `counts.safetensors`; of one shard, whose counts fit 31 bits."""
    columns = {"source_ids": _narrow(counts.source_ids), "target_ids": _narrow(counts.target_ids)}
    _save(folder / COUNTS, columns | {"counts": counts.counts.to(torch.int32)})


@_reading(COUNTS)
def read_counts(folder: Path) -> PairCounts:
    """How often pairs of tokens were seen, as written by `write_counts`."""
    tensors, _ = _load(folder / COUNTS)
    return PairCounts(tensors["source_ids"].long(), tensors["target_ids"].long(), tensors["counts"].long())


def write_pair(folder: Path, pair: Pair, target_tokenizer: str) -> None:
    """Writes `map.safetensors`, both vocabularies and the target's tokenizer: all that aligning needs to know.

    target_tokenizer: JSON that `load_encode` reads.
    """
    vocab_map = pair.vocab_map
    header = {"target_size": vocab_map.target_size, "in_context": vocab_map.in_context}
    _save(folder / VOCAB_MAP, {"ids": vocab_map.ids.to(torch.int32)}, **header)
    (folder / SOURCE_VOCABULARY).write_text(json.dumps(pair.source.to_json()))
    (folder / TARGET_VOCABULARY).write_text(json.dumps(pair.target.to_json()))
    (folder / TARGET_TOKENIZER).write_text(target_tokenizer)


@_reading(VOCAB_MAP)
def read_pair(folder: Path) -> Pair:
    """Two vocabularies and the map between them, as written by `write_pair`."""
    tensors, header = _load(folder / VOCAB_MAP)
    return Pair(
        source=Vocabulary.from_json(json.loads((folder / SOURCE_VOCABULARY).read_text())),
        target=Vocabulary.from_json(json.loads((folder / TARGET_VOCABULARY).read_text())),
        vocab_map=VocabMap(tensors["ids"].long(), header["target_size"], bool(header["in_context"])),
        encode=load_encode((folder / TARGET_TOKENIZER).read_text()),
    )


def _pack_dist(dist: TokenDist) -> dict[str, Tensor]:
    packed = {
        "row_offsets": dist.row_offsets.long(),
        "ids": dist.ids.to(_id_type(dist.vocab_size)),
        "logprobs": _pack_logprobs(dist.logprobs),
        "tail_logprob": _pack_logprobs(dist.tail_logprob),
    }
    if bool((dist.unknown_logprob > -torch.inf).any()):
        packed["unknown_logprob"] = _pack_logprobs(dist.unknown_logprob)
    return packed


def _unpack_dist(tensors: dict[str, Tensor], vocab_size: int) -> TokenDist:
    tail = _unpack_logprobs(tensors["tail_logprob"])
    unknown = tensors.get("unknown_logprob")
    return TokenDist(
        row_offsets=tensors["row_offsets"],
        ids=tensors["ids"].long(),
        logprobs=_unpack_logprobs(tensors["logprobs"]),
        tail_logprob=tail,
        unknown_logprob=torch.full_like(tail, -torch.inf) if unknown is None else _unpack_logprobs(unknown),
        vocab_size=vocab_size,
    )


def _pack_logprobs(logprobs: Tensor) -> Tensor:
    return logprobs if logprobs.dtype == torch.float64 else logprobs.half()


def _unpack_logprobs(logprobs: Tensor) -> Tensor:
    return logprobs if logprobs.dtype == torch.float64 else logprobs.float()


def _pack_tokens(tokens: Tokens) -> dict[str, Tensor]:
    return {
        "token_ids": tokens.ids.to(torch.int32),
        "boundaries": tokens.boundaries.to(torch.int32),
        "doc_offsets": tokens.doc_offsets.long(),
    }


def _unpack_tokens(tensors: dict[str, Tensor]) -> Tokens:
    return Tokens(tensors["token_ids"].long(), tensors["boundaries"].long(), tensors["doc_offsets"])


def _id_type(vocab_size: int) -> torch.dtype:
    if vocab_size <= 2**8:
        return torch.uint8
    return torch.uint16 if vocab_size <= 2**16 else torch.int32


def _narrow(ids: Tensor) -> Tensor:
    return ids.to(_id_type(1 + int(ids.max()) if len(ids) else 0))


def _save(path: Path, tensors: dict[str, Tensor], **header: int) -> None:
    # One metadata key: safetensors writes several in an order that differs from run to run.
    metadata = {"llm_fuse": json.dumps({"schema_version": SCHEMA_VERSION, **header}, sort_keys=True)}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    file, header = _open(path)
    with file:
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 - no mapping


def _open(path: Path) -> tuple[Any, dict[str, int]]:  # Any: safetensors types no method of its files
    """The memory-mapped file and our part of its header. Raises `StoreError` for one that can't be read."""
    try:
        file: Any = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise StoreError(
            f"{path.name}: not a readable safetensors file ({error}); delete its folder to recompute it"
        ) from error
    header = json.loads((file.metadata() or {}).get("llm_fuse", "{}"))
    found = header.get("schema_version", 0)
    if found > SCHEMA_VERSION:
        raise StoreError(f"{path.name}: reads up to schema {SCHEMA_VERSION}, found {found}; upgrade llm-fuse")
    return file, header
