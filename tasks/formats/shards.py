"""Distributions on disk: one safetensors file per (model, shard), ragged rows, narrow types.

    ids · logprobs · widths (left out when rows are equally wide) · tail_logprob, unknown_logprob (left out when
    nothing has any) · nll · token_ids · boundary_steps · doc_offsets i64 · cross_entropy f16 (where there is one)

How narrow each column is, `tasks.formats.columns` decides: with ten kept of 50,000 tokens a row takes 47 bytes, of
152,000 tokens 58. Everything but the rounding of logprobs to fp16 (relative error 5e-4) and of nll (`pack_nats`: 1/1024
nat in any sum) survives the round trip. Distributions in float64, which only the original's rules make, are stored as
they are, and nll beside them in fp32: their last digits decide. A teacher keeps `row_offsets` i64, since training
reads its rows in any order. Reading is memory-mapped: `read_*` costs no more than the pages that are touched. What a
model left may be compressed beyond that (`tasks.formats.compression`). The header holds the layout's version.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
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
from tasks.artifacts import StoreError
from tasks.formats.columns import (
    narrow_type,
    pack_boundaries,
    pack_ints,
    pack_logs,
    pack_nats,
    pack_offsets,
    unpack_boundaries,
    unpack_ints,
    unpack_logs,
    unpack_nats,
    unpack_offsets,
)
from tasks.formats.compression import compress_columns, expand_columns
from tasks.models.folders import load_encode

SCORED, ALIGNED, FUSED, VOCAB_MAP = "scored.safetensors", "aligned.safetensors", "fused.safetensors", "map.safetensors"
COUNTS = "counts.safetensors"
LAYOUT_VERSION, COMPRESSED_VERSION = 2, 3
"""Of these files. Older ones stay readable: 1 had wider types, `row_offsets` everywhere and absolute `boundaries`."""
_PER_ENTRY = ("ids", "ids_high", "logprobs")  # columns of a distribution with a value per kept token
_WHOLE = ("logprobs_table", "tail_logprob_table", "unknown_logprob_table")
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


def write_scored(folder: Path, scored: Scored, compress: bool = False) -> None:
    """Writes `scored.safetensors`. compress: a third smaller, read at half the speed."""
    columns, header = _pack_dist(scored.dist)
    exact = scored.dist.logprobs.dtype == torch.float64
    nll = {"nll": scored.nll.float()} if exact else pack_nats("nll", scored.nll, scored.tokens.doc_offsets)
    _save(folder / SCORED, columns | _pack_tokens(scored.tokens) | nll, header, compress)


@_reading(SCORED)
def read_scored(folder: Path) -> Scored:
    """A shard as one model read it, as written by `write_scored`."""
    columns, header = _load(folder / SCORED)
    tokens = _unpack_tokens(columns)
    return Scored(tokens, _unpack_dist(columns, header, len(tokens.ids)), unpack_nats(columns, "nll"))


def write_aligned(folder: Path, aligned: Aligned) -> None:
    """Writes `aligned.safetensors`."""
    columns, header = _pack_dist(aligned.dist)
    columns |= {"span_nll": aligned.span_nll.float(), "span_tokens": _narrow(aligned.span_tokens)}
    if aligned.cross_entropy is not None:
        columns["cross_entropy"] = aligned.cross_entropy.half()
    _save(folder / ALIGNED, columns, header)


@_reading(ALIGNED)
def read_aligned(folder: Path) -> Aligned:
    """One source on the target's rows, as written by `write_aligned`."""
    columns, header = _load(folder / ALIGNED)
    span_nll = columns["span_nll"]
    dist = _unpack_dist(columns, header, len(span_nll))
    return Aligned(dist, span_nll, columns["span_tokens"].long(), columns.get("cross_entropy"))


def write_fused(folder: Path, fused: Fused) -> None:
    """Writes `fused.safetensors`."""
    columns, header = _pack_dist(fused.dist, any_order=True)
    _save(folder / FUSED, columns | {"winner": fused.winner.to(torch.int16)}, header)


@_reading(FUSED)
def read_fused(folder: Path) -> Fused:
    """The teacher of a shard, as written by `write_fused`."""
    columns, header = _load(folder / FUSED)
    return Fused(_unpack_dist(columns, header, len(columns["winner"])), columns["winner"].long())


class FusedRows:
    """The teacher of a shard, of which only the rows that are asked for are read."""

    @_reading(FUSED)
    def __init__(self, folder: Path) -> None:
        """Opens `fused.safetensors`; nothing but its header is read."""
        self._file, self._header = _open(folder / FUSED)
        self._names = set(self._file.keys()) - {"winner"}
        self.num_rows: int = self._file.get_slice("row_offsets").get_shape()[0] - 1
        self.vocab_size: int = self._header["vocab_size"]

    def rows(self, start: int, stop: int) -> TokenDist:
        """The rows `start..stop-1`, as `read_fused(folder).dist.rows(start, stop)` gives them."""
        offsets = self._file.get_slice("row_offsets")[start : stop + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        columns = {"row_offsets": offsets - offsets[0]}
        for name in self._names - {"row_offsets"}:
            part = entries if name in _PER_ENTRY else slice(None) if name in _WHOLE else slice(start, stop)
            columns[name] = self._file.get_slice(name)[part]
        return _unpack_dist(columns, self._header, stop - start)


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
    _save(folder / VOCAB_MAP, {"ids": vocab_map.ids.to(torch.int32)}, header)
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


def _pack_dist(dist: TokenDist, any_order: bool = False) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The columns and what the header says of them. any_order: whether rows are found without reading all widths."""
    columns, width = ({"row_offsets": dist.row_offsets.long()}, 0) if any_order else pack_offsets(dist.row_offsets)
    columns |= pack_ints("ids", dist.ids, dist.vocab_size - 1) | pack_logs("logprobs", dist.logprobs)
    for name in _MASSES:
        if bool((getattr(dist, name) > -torch.inf).any()):
            columns |= pack_logs(name, getattr(dist, name))
    return columns, {"vocab_size": dist.vocab_size, "width": width}


_MASSES = ("tail_logprob", "unknown_logprob")


def _unpack_dist(columns: dict[str, Tensor], header: dict[str, int], num_rows: int) -> TokenDist:
    logprobs = unpack_logs(columns, "logprobs")
    nothing = torch.full((num_rows,), -torch.inf, dtype=logprobs.dtype)
    tail, unknown = (unpack_logs(columns, name) if name in columns else nothing for name in _MASSES)
    return TokenDist(
        row_offsets=unpack_offsets(columns, header.get("width", 0), num_rows),
        ids=unpack_ints(columns, "ids"),
        logprobs=logprobs,
        tail_logprob=tail,
        unknown_logprob=unknown,
        vocab_size=header["vocab_size"],
    )


def _pack_tokens(tokens: Tokens) -> dict[str, Tensor]:
    ids = pack_ints("token_ids", tokens.ids, int(tokens.ids.max()) if len(tokens.ids) else 0)
    return ids | pack_boundaries(tokens.boundaries, tokens.doc_offsets) | {"doc_offsets": tokens.doc_offsets.long()}


def _unpack_tokens(columns: dict[str, Tensor]) -> Tokens:
    offsets = columns["doc_offsets"]
    return Tokens(unpack_ints(columns, "token_ids"), unpack_boundaries(columns, offsets), offsets)


def _narrow(values: Tensor) -> Tensor:
    return values.to(narrow_type(int(values.max()) if len(values) else 0))


def _save(
    path: Path, tensors: dict[str, Tensor], header: Mapping[str, int] | None = None, compress: bool = False
) -> None:
    columns = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    written: dict[str, Any] = {"schema_version": LAYOUT_VERSION, **(header or {})}  # Any: JSON
    if compress:
        columns, compressed = compress_columns(columns)
        written |= {"schema_version": COMPRESSED_VERSION, "compressed": compressed}
    # One metadata key: safetensors writes several in an order that differs from run to run.
    save_file(columns, path, {"llm_fuse": json.dumps(written, sort_keys=True)})


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:  # Any: JSON
    file, header = _open(path)
    with file:
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return expand_columns(columns, header.get("compressed", {})), header


def _open(path: Path) -> tuple[Any, dict[str, Any]]:  # Any: safetensors types no method of its files; JSON
    """The memory-mapped file and our part of its header. Raises `StoreError` for one that can't be read."""
    try:
        file: Any = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise StoreError(
            f"{path.name}: not a readable safetensors file ({error}); delete its folder to recompute it"
        ) from error
    header = json.loads((file.metadata() or {}).get("llm_fuse", "{}"))
    found = header.get("schema_version", 0)
    if found > COMPRESSED_VERSION:
        raise StoreError(f"{path.name}: reads up to schema {COMPRESSED_VERSION}, found {found}; upgrade llm-fuse")
    return file, header
