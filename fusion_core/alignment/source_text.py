"""A source's shard, ready to be asked how its text goes on."""

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fusion_core.alignment.entries import NO_ROW, log_subtract
from fusion_core.alignment.pair import Pair
from fusion_core.alignment.surface_bytes import Text
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist


class SourceText:
    """A source's tokens as bytes, its distributions, and what it spent.

    dist: its distributions. spent: cumulative nats, see `spent_nats`.
    first_of_doc, last_of_doc: rows of each row's document. surfaces: of the source's vocabulary.
    """

    def __init__(
        self, source: Scored, spent: Float[Tensor, "source_tokens"], pair: Pair, with_labels: bool = False
    ) -> None:
        """`with_labels` makes the token that was really read a candidate of every row: its nll is known."""
        self.tokens, self.spent, self._pair = source.tokens, spent, pair
        device = self.tokens.ids.device
        doc = self.tokens.doc_of_token
        self.first_of_doc, self.last_of_doc = self.tokens.doc_offsets[doc], self.tokens.doc_offsets[doc + 1] - 1
        self.surfaces = pair.source_bytes.to(device)
        self.dist = self._add_labels(source) if with_labels else source.dist
        self._kept = source.dist

    @cached_property
    def content(self) -> UInt8[Tensor, "bytes"]:
        """The surfaces of all tokens, joined."""
        return torch.from_numpy(self._pair.source.join_surfaces(self.tokens.ids)).to(self.tokens.ids.device)

    @cached_property
    def ends(self) -> Int[Tensor, "source_tokens"]:
        """Where each token ends in `content`."""
        return self.surfaces.lengths[self.tokens.ids].cumsum(0)

    @cached_property
    def without_bytes(self) -> Int[Tensor, "source_tokens"]:
        """How many tokens up to and with each one have no bytes."""
        return (self.surfaces.lengths[self.tokens.ids] == 0).cumsum(0)

    def count_longer(self, text: Text) -> Int[Tensor, "pieces"]:
        """Tokens of the source's vocabulary that begin with each piece of text and go on."""
        return self._pair.source_tree.to(text.length.device).count_longer(text)

    def bound_lost(
        self, rows: Int[Tensor, "pieces"], text: Text, found: Int[Tensor, "pieces"]
    ) -> Float[Tensor, "pieces"]:
        """Log of the most that tokens beginning with a piece of text may weigh besides those `found` in its row.

        They share the row's tail, and none of them is likelier than the least likely candidate that the row kept. What
        is unknown in the row adds to it. Nothing is lost for row -1.
        """
        missed = (self.count_longer(text) - found).clamp(min=0)
        tail, unknown = (values[rows].double() for values in (self.dist.tail_logprob, self.dist.unknown_logprob))
        bound = torch.minimum(tail, missed.double().log() + self._least[rows]).masked_fill(missed == 0, -torch.inf)
        return torch.logaddexp(bound, unknown).masked_fill(rows == NO_ROW, -torch.inf)

    def leaves_open(
        self, row: Int[Tensor, "n"], read_row: Int[Tensor, "n"], label_end: Int[Tensor, "n"]
    ) -> Bool[Tensor, "n"]:
        """Whether a text read up to and with `read_row`, a later token of `row`'s document, doesn't settle the label.

        It provably ends at the label's end or before it, or in white space, where many tokenizers look one character
        ahead. False where there is no such token, or it has no bytes.
        """
        read = read_row.clamp(max=len(self.tokens.ids) - 1)
        boundary, ids = self.tokens.boundaries[read], self.tokens.ids[read]
        last_byte = self.surfaces.byte(ids, self.surfaces.lengths[ids] - 1)
        in_space = (last_byte == 0x20) | ((last_byte >= 0x09) & (last_byte <= 0x0D))
        is_later = (read_row <= self.last_of_doc[row]) & (self.surfaces.lengths[ids] > 0) & (boundary != NO_BOUNDARY)
        return is_later & ((boundary <= label_end) | in_space)

    @cached_property
    def _least(self) -> Float[Tensor, "source_tokens"]:
        """Log-probability of each row's least likely candidate; 0 for a row without any."""
        dist = self._kept
        least = torch.zeros(dist.num_rows, dtype=torch.float64, device=dist.ids.device)
        return least.scatter_reduce(0, dist.row_of_entry, dist.logprobs.double(), "amin")

    def _add_labels(self, source: Scored) -> TokenDist:
        """The distributions with each row's label among the candidates, its mass taken from the tail."""
        dist, row = source.dist, source.dist.row_of_entry
        label = self.tokens.ids.roll(-1)
        kept = torch.zeros(dist.num_rows, dtype=torch.bool, device=row.device)
        kept[row[dist.ids == label[row]]] = True
        rows = torch.arange(dist.num_rows, device=row.device)
        added = (~kept & (rows != self.last_of_doc) & dist.present).nonzero().squeeze(1)
        logprob = torch.minimum(-source.nll[added].double(), dist.tail_logprob[added].double())
        tail = dist.tail_logprob.double()
        tail = tail.index_copy(0, added, log_subtract(tail[added], logprob))
        order = torch.cat([row, added]).argsort(stable=True)
        widths = dist.row_offsets.diff().index_add(0, added, torch.ones_like(added))
        return TokenDist(
            row_offsets=torch.cat([widths.new_zeros(1), widths.cumsum(0)]),
            ids=torch.cat([dist.ids.long(), label[added]])[order],
            logprobs=torch.cat([dist.logprobs.double(), logprob])[order],
            tail_logprob=tail,
            unknown_logprob=dist.unknown_logprob,
            vocab_size=dist.vocab_size,
        )
