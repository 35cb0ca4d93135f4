"""What the original's collator makes of kept logits, and how its trainer makes one target of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Targets:
    """One distribution per position, sparse: `probs` of `ids`; unused places have probability 0, every other id too."""

    ids: Int[Tensor, "batch seq width"]
    probs: Float[Tensor, "batch seq width"]


def collate_targets(
    ids: Int[Tensor, "batch seq width"],
    logits: Float[Tensor, "batch seq width"],
    lengths: Int[Tensor, "batch"],
    *,
    pad_id: int,
    base: Targets | None = None,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> Targets:
    """The softmax of each position's kept logits alone, computed in `dtype`.

    logits: -inf where a position has fewer candidates. Of an id that occurs twice the first counts.
    base: whose row a position without candidates gets; without it, such a position has probability 0 everywhere.
    lengths: positions from there on are one-hot on `pad_id`. The teacher alone is tempered, by a division in `dtype`.

    Raises ValueError for shapes that differ and lengths past the positions.
    """
    _check_collatable(ids, logits, lengths)
    filled = logits > -torch.inf
    kept = logits.to(dtype).masked_fill(_repeats(ids, filled), -torch.inf)
    probs = (kept / temperature).softmax(-1).masked_fill(~filled, 0.0)
    targets = Targets(ids.masked_fill(~filled, 0), probs)
    if base is not None:
        targets = _select(filled.any(-1), targets, base)
    padding = torch.arange(ids.shape[1], device=ids.device) >= lengths.unsqueeze(1)
    one_hot = Targets(torch.full_like(ids[..., :1], pad_id), torch.ones_like(probs[..., :1]))
    return _select(padding, one_hot, targets)


def reward(cross_entropy: Float[Tensor, "batch sources"], dtype: torch.dtype) -> Float[Tensor, "batch sources"]:
    """1 / exp(CE), each step rounded to `dtype`. CE in nats per token of the source's own."""
    return 1 / cross_entropy.to(dtype).exp()


def choose_sources(rewards: Float[Tensor, "batch sources"], *, base_teaches: bool) -> Int[Tensor, "batch"]:
    """The source of the largest reward; see `choose_targets` for ties."""
    number = rewards.shape[1]
    return rewards.argmax(1) if base_teaches else number - 1 - rewards.flip(1).argmax(1)


def choose_targets(
    targets: Sequence[Targets], rewards: Float[Tensor, "batch sources"], *, base_teaches: bool
) -> Targets:
    """Each sequence's target of the largest reward.

    Of equal ones the first, if the first is the base's; where the base doesn't teach, the last.
    """
    _check_sources(targets, rewards)
    best = choose_sources(rewards, base_teaches=base_teaches)
    ids, probs = _stack(targets)
    sequence = torch.arange(len(best), device=best.device)
    return Targets(ids[sequence, :, best], probs[sequence, :, best])


def mix_targets(targets: Sequence[Targets], rewards: Float[Tensor, "batch sources"]) -> Targets:
    """The targets' sum weighted by softmax(rewards), each product and each sum rounded to the targets' dtype."""
    _check_sources(targets, rewards)
    weights = rewards.softmax(1)
    union = torch.cat([target.ids for target in targets], -1)
    mixed = torch.zeros_like(union, dtype=weights.dtype)
    for target, weight in zip(targets, weights.unbind(1), strict=True):
        same = union.unsqueeze(-1) == target.ids.unsqueeze(-2)
        probs = target.probs.unsqueeze(-2).where(same, 0.0).sum(-1)  # one place at most has a probability
        mixed = mixed + weight[:, None, None] * probs
    return Targets(union, mixed.masked_fill(_repeats(union, mixed > 0), 0.0))


def _repeats(ids: Int[Tensor, "batch seq width"], filled: Bool[Tensor, "batch seq width"]) -> Tensor:
    """Which entries aren't filled, or have the id of a filled one before them."""
    same = (ids.unsqueeze(-1) == ids.unsqueeze(-2)) & filled.unsqueeze(-2)
    return same.tril(-1).any(-1) | ~filled


def _select(where: Bool[Tensor, "batch seq"], yes: Targets, no: Targets) -> Targets:
    ids, probs = _stack([no, yes])
    chosen = where.long()[:, :, None, None].expand(-1, -1, 1, ids.shape[-1])
    return Targets(ids.gather(2, chosen).squeeze(2), probs.gather(2, chosen).squeeze(2))


def _stack(
    targets: Sequence[Targets],
) -> tuple[Int[Tensor, "batch seq sources width"], Float[Tensor, "batch seq sources width"]]:
    """Ids and probabilities side by side, the narrower ones padded with probability 0."""
    width = max(target.ids.shape[-1] for target in targets)
    ids = [pad(target.ids, (0, width - target.ids.shape[-1])) for target in targets]
    probs = [pad(target.probs, (0, width - target.probs.shape[-1])) for target in targets]
    return torch.stack(ids, 2), torch.stack(probs, 2)


def _check_collatable(ids: Tensor, logits: Tensor, lengths: Tensor) -> None:
    if ids.ndim != 3 or ids.shape != logits.shape or lengths.shape != ids.shape[:1]:
        raise ValueError(
            f"expected ids and logits [batch, seq, width] and one length per sequence, found {tuple(ids.shape)},"
            f" {tuple(logits.shape)} and {tuple(lengths.shape)}; pad the rows with logits of -inf"
        )
    if len(lengths) and int(lengths.max()) > ids.shape[1]:
        raise ValueError(
            f"expected lengths up to {ids.shape[1]} positions, found {int(lengths.max())}; cut or pack first"
        )


def _check_sources(targets: Sequence[Targets], rewards: Tensor) -> None:
    if not targets or rewards.ndim != 2 or rewards.shape[1] != len(targets):
        raise ValueError(
            f"expected one reward per sequence for each of {len(targets)} (at least 1) targets, found rewards of shape"
            f" {tuple(rewards.shape)}; pass [batch, sources]"
        )
