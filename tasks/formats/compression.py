"""Columns of a file in fewer bytes: all first bytes of its numbers, then all second ones, each lot by zstd.

Neighbours of one rank differ little in their high bytes, so this takes a third off distributions whose ids and
log-probabilities are narrow already. A column that wouldn't shrink stays as it is, and is memory-mapped like any other.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

_LEVEL = 1  # higher ones save 1 % more, and cost five times the reading
_MOST = 64
"""A column may not claim more than so many times its compressed bytes: memory is asked for before it is seen."""

_TYPES = {np.dtype(name).name: np.dtype(name) for name in ("u1", "u2", "i2", "i4", "i8", "f2", "f4", "f8")}
Described = dict[str, tuple[str, int]]
"""Of each compressed column, numpy's name of its type and how many numbers it has."""


def compress_columns(columns: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Described]:
    """The columns, those that shrink as bytes, and what must be known to read these."""
    codec = pa.Codec("zstd", compression_level=_LEVEL)
    packed, described = dict(columns), Described()
    for name, column in columns.items():
        values = column.contiguous().numpy()
        found = codec.compress(_bytes_by_rank(values), asbytes=True)
        if values.ndim == 1 and values.nbytes / _MOST <= len(found) < values.nbytes:
            packed[name] = torch.frombuffer(bytearray(found), dtype=torch.uint8)
            described[name] = (values.dtype.name, len(values))
    return packed, described


def expand_columns(columns: Mapping[str, Tensor], described: Mapping[str, tuple[str, int]]) -> dict[str, Tensor]:
    """The columns as they were. Raises `ValueError` and `LookupError` for what `compress_columns` doesn't make."""
    codec = pa.Codec("zstd")
    expanded = dict(columns)
    for name, (type_name, length) in described.items():
        dtype, held = _TYPES[type_name], columns[name].numpy()
        size = length * dtype.itemsize
        if not 0 <= size <= _MOST * held.nbytes:
            raise ValueError(f"{name}: expected at most {_MOST * held.nbytes} bytes in {held.nbytes}, found {size}")
        try:
            planes = np.frombuffer(codec.decompress(held, size), np.uint8)
        except OSError as error:  # pyarrow's word for damage; no file is read here
            raise ValueError(f"{name}: {error}") from error
        values = np.empty(length, dtype)
        for rank in range(dtype.itemsize):
            values.view(np.uint8)[rank :: dtype.itemsize] = planes[rank * length : (rank + 1) * length]
        expanded[name] = torch.from_numpy(values)
    return expanded


def _bytes_by_rank(values: np.ndarray) -> np.ndarray:
    size = values.dtype.itemsize
    return np.concatenate([values.reshape(-1).view(np.uint8)[rank::size] for rank in range(size)])
