"""What a scored sample says of an extraction and of a choice between sources."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_core.alignment import common_rows
from fusion_core.alignment.entries import NO_ROW
from fusion_core.alignment.rows import spans, spent_nats
from fusion_core.costs import sequence_costs
from fusion_core.types import Aligned, Scored, TokenDist, Tokens


@dataclass(frozen=True)
class Truncation:
    """What keeping a few candidates per row costs, over the rows that have a label.

    rows: how many. kept: mean mass of the kept candidates. label_kept: share of rows whose label is one of them.
    nats: mean nats per row that a student pays more than the model itself if it learns the kept candidates and the
        mass of the tail, and spreads that evenly over all other ids. An upper bound: it also reads the text. NaN where
        rows have no tail (sampled ones, which are unbiased without).
    """

    rows: int
    kept: float
    label_kept: float
    nats: float


def measure_truncation(scored: Scored) -> Truncation:
    """What the extraction of this sample left out; all 0 for a sample without labels."""
    dist = scored.dist
    labels = scored.tokens.ids.roll(-1)
    has_label = scored.nll.isfinite() & dist.present
    row = dist.row_of_entry
    kept = torch.zeros(dist.num_rows, dtype=torch.float64).index_add_(0, row, dist.logprobs.double().exp())
    hits = torch.zeros(dist.num_rows, dtype=torch.int64).index_add_(0, row, (dist.ids == labels[row]).long())
    missed = has_label & (hits == 0)
    rest = (dist.vocab_size - dist.row_offsets.diff()).clamp(min=1).double().log()
    extra = rest - dist.tail_logprob.double() - scored.nll.double()
    rows = int(has_label.sum())
    lost = float(extra[missed].sum()) / max(rows, 1)
    return Truncation(
        rows=rows,
        kept=float(kept[has_label].sum()) / max(rows, 1),
        label_kept=float((has_label & ~missed).sum()) / max(rows, 1),
        nats=lost if math.isfinite(lost) else math.nan,
    )


def compare_choices(candidates: Sequence[Scored], target: Tokens) -> tuple[int, int]:
    """Documents where the candidates can be compared, and those of them where the two scores choose different ones.

    The scores are those of fusion at the level of the sequence: nats per token and bits per byte, over the bytes
    between common boundaries.

    Raises:
        ValueError: fewer than two candidates, or other documents than the target's.
    """
    if len(candidates) < 2:
        raise ValueError(f"a choice needs at least 2 candidates, found {len(candidates)}; score another source")
    aligned = [_align_costs(candidate, target) for candidate in candidates]
    first = target.doc_offsets[:-1][target.doc_offsets.diff() > 0]
    costs = [sequence_costs(aligned, target, score)[:, first] for score in ("bits_per_byte", "nats_per_token")]
    comparable = costs[0].isfinite().sum(0) > 1
    differs = costs[0].argmin(0) != costs[1].argmin(0)
    return int(comparable.sum()), int((comparable & differs).sum())


def _align_costs(source: Scored, target: Tokens) -> Aligned:
    """The source's costs on the target's rows, its distributions left out: a row is present or it isn't."""
    common = common_rows(source.tokens, target)
    span_nll, span_tokens = spans(source, spent_nats(source), target, common)
    return Aligned(_empty_rows(common != NO_ROW), span_nll, span_tokens)


def _empty_rows(present: Tensor) -> TokenDist:
    """Rows without candidates: all mass in the tail where present, unknown elsewhere."""
    certain = torch.where(present, 0.0, -torch.inf)
    return TokenDist(
        row_offsets=torch.zeros(len(present) + 1, dtype=torch.int64),
        ids=torch.zeros(0, dtype=torch.int64),
        logprobs=torch.zeros(0, dtype=torch.float32),
        tail_logprob=certain,
        unknown_logprob=torch.where(present, -torch.inf, 0.0),
        vocab_size=1,
    )
