"""The surfaces of a vocabulary as bytes, and which of them begin with given bytes: for many texts at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from fusion_core.vocabulary import Vocabulary


@dataclass(frozen=True)
class SurfaceBytes:
    """The surfaces of a vocabulary one after the other, and one more byte: the buffer is never empty.

    starts, lengths: of each id's surface; ids without bytes have length 0.
    """

    buffer: UInt8[Tensor, "bytes"]
    starts: Int[Tensor, "vocab"]
    lengths: Int[Tensor, "vocab"]

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "SurfaceBytes":
        """The surfaces of `vocabulary`, on the CPU."""
        joined = torch.from_numpy(vocabulary.join_surfaces(torch.arange(vocabulary.size)))
        lengths = vocabulary.surface_lengths.clamp(min=0)
        return cls(torch.cat([joined, joined.new_zeros(1)]), lengths.cumsum(0) - lengths, lengths)

    def to(self, device: torch.device) -> "SurfaceBytes":
        """The same on another device."""
        return SurfaceBytes(self.buffer.to(device), self.starts.to(device), self.lengths.to(device))

    def byte(self, ids: Int[Tensor, "n"], place: Int[Tensor, "n"] | int) -> Int[Tensor, "n"]:
        """The byte at `place` of each id's surface; of no meaning outside of it."""
        return self.buffer[(self.starts[ids] + place).clamp(0, len(self.buffer) - 1)].long()

    def joints(self) -> Bool[Tensor, "pairs"]:
        """For each pair of bytes (first * 256 + second) whether some surface holds them next to each other."""
        pairs = self.buffer[:-1].long() * 256 + self.buffer[1:].long()
        inside = torch.ones_like(pairs, dtype=torch.bool)
        inside[(self.starts + self.lengths - 1)[self.lengths > 0]] = False
        found = torch.zeros(256 * 256, dtype=torch.bool, device=pairs.device)
        found[pairs[inside]] = True
        return found


@dataclass(frozen=True)
class Text:
    """Pieces of one long text: piece `i` has the bytes `start[i]:start[i] + length[i]`."""

    content: UInt8[Tensor, "bytes"]
    start: Int[Tensor, "pieces"]
    length: Int[Tensor, "pieces"]

    def byte(self, pieces: Int[Tensor, "n"], place: int) -> Int[Tensor, "n"]:
        """The byte at `place` of the given pieces."""
        return self.content[self.start[pieces] + place].long()


def begin_with(
    surfaces: SurfaceBytes, token: Int[Tensor, "n"], text: Text, piece: Int[Tensor, "n"]
) -> Bool[Tensor, "n"]:
    """Whether each token's surface begins with the bytes of its piece of text (equal ones do)."""
    begins = surfaces.lengths[token] >= text.length[piece]
    left = begins.nonzero().squeeze(1)
    place = 0
    while len(left):
        left = left[text.length[piece[left]] > place]
        differs = surfaces.byte(token[left], place) != text.byte(piece[left], place)
        begins[left[differs]] = False
        left = left[~differs]
        place += 1
    return begins


@dataclass(frozen=True)
class PrefixTree:
    """The surfaces of a vocabulary as a tree of bytes, to count those that go on after given bytes.

    steps[d]: the steps from depth `d` to `d + 1`, rising, each as node * 256 + byte; its place in the list is the
        number of the node it leads to.
    longer[d]: for each of these nodes, the number of ids whose surface passes it and goes on.
    """

    steps: tuple[Int[Tensor, "_"], ...]
    longer: tuple[Int[Tensor, "_"], ...]

    @classmethod
    def of(cls, surfaces: SurfaceBytes) -> "PrefixTree":
        """The tree of all surfaces that have bytes."""
        steps: list[Tensor] = []
        counts: list[Tensor] = []
        ids = (surfaces.lengths > 0).nonzero().squeeze(1)
        node = torch.zeros_like(ids)
        while len(ids):
            level, node = torch.unique(node * 256 + surfaces.byte(ids, len(steps)), return_inverse=True)
            goes_on = surfaces.lengths[ids] > len(steps) + 1
            steps.append(level)
            counts.append(torch.bincount(node[goes_on], minlength=len(level)))
            ids, node = ids[goes_on], node[goes_on]
        return cls(tuple(steps), tuple(counts))

    def to(self, device: torch.device) -> "PrefixTree":
        """The same on another device."""
        return PrefixTree(tuple(t.to(device) for t in self.steps), tuple(t.to(device) for t in self.longer))

    def count_longer(self, text: Text) -> Int[Tensor, "pieces"]:
        """For each piece of text, how many ids have a surface that begins with it and is longer; 0 for an empty one."""
        count = torch.zeros_like(text.length)
        left = (text.length > 0).nonzero().squeeze(1)
        node = torch.zeros_like(left)
        for depth, (steps, longer) in enumerate(zip(self.steps, self.longer, strict=True)):
            wanted = node * 256 + text.byte(left, depth)
            found = torch.searchsorted(steps, wanted).clamp(max=len(steps) - 1)
            known = steps[found] == wanted
            left, node = left[known], found[known]
            ends = text.length[left] == depth + 1
            count[left[ends]] = longer[node[ends]]
            left, node = left[~ends], node[~ends]
            if not len(left):
                break
        return count
