"""Columns of numbers in as few bytes as hold them, and back at memory speed.

A column of integers takes u8, u16, u16 and u8 beside it (24 bits, `NAME_high`), or i32, whichever holds the largest
first. A column of log-probabilities takes fp16, or one byte per value and a table of the values (`NAME_table`) where
no more than 256 differ, as in the shares of a few draws. What is read is new memory: a file may be replaced.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fusion_core.types import NO_BOUNDARY

Columns = dict[str, Tensor]
_TABLE = 256
_PROBED = 4096  # values that are looked at before all of them are counted


def pack_ints(name: str, values: Tensor, largest: int) -> Columns:
    """The columns of integers in 0..largest."""
    if largest < 2**16 or largest >= 2**24:
        return {name: values.to(narrow_type(largest))}
    return {name: (values & 0xFFFF).to(torch.uint16), f"{name}_high": (values >> 16).to(torch.uint8)}


def unpack_ints(columns: Mapping[str, Tensor], name: str) -> Tensor:
    """The integers as int64."""
    # numpy asks for huge pages, and its casts of 16 bits are vectorised: four times torch's speed
    values = columns[name].numpy().astype(np.int64)
    if (high := columns.get(f"{name}_high")) is not None:
        values.view(np.uint16)[_SECOND_WORD::4] = high.numpy()
    return torch.from_numpy(values)


_SECOND_WORD = 1 if np.little_endian else 2


def narrow_type(largest: int) -> torch.dtype:
    """The narrowest integer that holds 0..largest."""
    if largest < 2**8:
        return torch.uint8
    return torch.uint16 if largest < 2**16 else torch.int32


def pack_logs(name: str, values: Tensor) -> Columns:
    """The columns of log-probabilities, rounded to fp16; those in float64 stay as they are."""
    if values.dtype == torch.float64:
        return {name: values}
    rounded = values.half()
    patterns = rounded.contiguous().view(torch.uint16).numpy()
    if len(np.unique(patterns[:_PROBED])) > _TABLE:
        return {name: rounded}
    counts = np.bincount(patterns, minlength=2**16)
    found = np.flatnonzero(counts)
    if not 0 < len(found) <= _TABLE or 2 * len(found) >= len(patterns):
        return {name: rounded}
    place = np.zeros(2**16, np.uint8)
    place[found] = np.arange(len(found))
    table = torch.from_numpy(found.astype(np.uint16)).view(torch.float16)
    return {name: torch.from_numpy(place[patterns]), f"{name}_table": table}


def unpack_logs(columns: Mapping[str, Tensor], name: str) -> Tensor:
    """The log-probabilities in fp32, or float64 where they were."""
    values, table = columns[name], columns.get(f"{name}_table")
    if table is not None:
        return torch.from_numpy(_look_up(table.float().numpy(), values.numpy()))
    if values.dtype == torch.float64:
        return values
    return torch.from_numpy(np.empty(len(values), np.float32)).copy_(values)


def _look_up(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`table[places]` for fp32 and u8, two at a time, which is twice as fast."""
    if len(places) < _TABLE**2:
        return np.asarray(table[places])
    whole = np.zeros(_TABLE, np.float32)
    whole[: len(table)] = table
    pairs = np.stack(np.broadcast_arrays(whole, whole[:, None]), axis=-1)  # [second, first] on a little-endian machine
    if not np.little_endian:
        pairs = pairs[..., ::-1]
    even = len(places) // 2 * 2
    found = np.ascontiguousarray(pairs).view(np.uint64).ravel()[places[:even].view(np.uint16)].view(np.float32)
    return found if even == len(places) else np.append(found, table[places[even:]])


def pack_nats(name: str, nats: Tensor, doc_offsets: Tensor) -> Columns:
    """The column of costs in nats per token, NaN where there is none: multiples of 1/1024 in u16, NaN as the largest.

    Costs are compared as sums, so what is rounded is each document's running sum: the cost of any stretch of text is
    off by 1/1024 nat at most, however long it is. What was rounded once stays as it is, whatever documents are around
    it. Where a cost is 63 nats or more, the same numbers take fp32.
    """
    known = nats.isfinite()
    # whole numbers, whose sums don't depend on what comes before
    fine = nats.double().where(known, torch.zeros(())).clamp(min=0).mul(2**_FINE_BITS).round().long()
    reached = fine.cumsum(0)
    before = torch.cat([reached.new_zeros(1), reached])[doc_offsets[:-1]].repeat_interleave(doc_offsets.diff())
    ends = (reached - before + 2 ** (_FINE_BITS - _COST_BITS - 1)) >> (_FINE_BITS - _COST_BITS)
    starts = (reached - fine - before + 2 ** (_FINE_BITS - _COST_BITS - 1)) >> (_FINE_BITS - _COST_BITS)
    steps = ends - starts
    if bool((nats >= _LARGEST_COST).any()):
        return {name: nats.float().where(~known, (steps / 2**_COST_BITS).float())}
    return {f"{name}_steps": steps.masked_fill(~known, 2**16 - 1).to(torch.int32).to(torch.uint16)}


_FINE_BITS, _COST_BITS, _LARGEST_COST = 30, 10, 63.0


def unpack_nats(columns: Mapping[str, Tensor], name: str) -> Tensor:
    """The costs in fp32."""
    if name in columns:
        return columns[name].float()
    steps = columns[f"{name}_steps"].numpy()
    nats = steps.astype(np.float32) / np.float32(2**_COST_BITS)
    nats[steps == 2**16 - 1] = np.nan
    return torch.from_numpy(nats)


def pack_boundaries(boundaries: Tensor, doc_offsets: Tensor) -> Columns:
    """The boundaries as steps from the one before in the document; as they are (i32) where they don't rise."""
    known = boundaries != NO_BOUNDARY
    limit = 1 + max(int(boundaries.max()) if len(boundaries) else 0, 0)
    base = limit * _doc_of_token(doc_offsets)  # so that each document begins above the one before
    reached = torch.where(known, base + boundaries, base).cummax(0).values
    before = torch.cat([reached.new_zeros(1), reached])[:-1].maximum(base)
    steps = torch.where(known, base + boundaries - before, 0)
    largest = 1 + (int(steps.max()) if len(steps) else 0)  # the largest number stands for no boundary
    dtype = narrow_type(largest)
    steps = torch.where(known, steps, _LARGEST.get(dtype, -1))
    if dtype in _LARGEST and (not len(steps) or int(steps.min()) >= 0):
        packed = {"boundary_steps": steps.to(dtype)}
        if torch.equal(unpack_boundaries(packed, doc_offsets), boundaries):
            return packed
    return {"boundaries": boundaries.to(torch.int32)}


_LARGEST = {torch.uint8: 2**8 - 1, torch.uint16: 2**16 - 1}


def unpack_boundaries(columns: Mapping[str, Tensor], doc_offsets: Tensor) -> Tensor:
    """The boundaries as int64."""
    if "boundary_steps" not in columns:
        return columns["boundaries"].long()
    steps = columns["boundary_steps"].numpy()
    known = steps != np.iinfo(steps.dtype).max
    ends = np.cumsum(np.where(known, steps, 0), dtype=np.int64)
    begins = np.concatenate([np.zeros(1, np.int64), ends])[doc_offsets.numpy()[:-1]]
    ends -= np.repeat(begins, np.diff(doc_offsets.numpy()))
    ends[~known] = NO_BOUNDARY
    return torch.from_numpy(ends)


def _doc_of_token(doc_offsets: Tensor) -> Tensor:
    return torch.arange(len(doc_offsets) - 1).repeat_interleave(doc_offsets.diff())


def pack_offsets(offsets: Tensor) -> tuple[Columns, int]:
    """The columns of row offsets: none and the width where all rows are equally wide, else widths per row and 0."""
    widths = offsets.diff()
    largest = int(widths.max()) if len(widths) else 0
    if len(widths) and largest == int(widths.min()):
        return {}, largest
    return {"widths": widths.to(narrow_type(largest))}, 0


def unpack_offsets(columns: Mapping[str, Tensor], width: int, num_rows: int) -> Tensor:
    """The row offsets as int64, of `num_rows` rows."""
    if "row_offsets" in columns:
        return columns["row_offsets"]
    if "widths" not in columns:
        return torch.arange(num_rows + 1) * width
    offsets = np.zeros(num_rows + 1, np.int64)
    np.cumsum(columns["widths"].numpy(), out=offsets[1:], dtype=np.int64)
    return torch.from_numpy(offsets)
