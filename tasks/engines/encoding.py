"""Documents as a model reads them: plain ones as they are, conversations through the model's chat template.

What the template and other speakers say has no bytes. Of the tokens before a turn the last one stands where the turn
begins, as the begin token of a plain document does, and so the turn before it ends without a boundary, the last turn
excepted. A turn is cut by itself, as generated text is: without a prefix space, and not merged with what is around it.
So its boundaries are the same whatever the template. Other messages go through the template, and are cut with it, but
for those with what looks like a special token: it is text there as in any text, and in the definitions of tools.
(Roles, names and calls are the template's to show.)

Compared and fused is the text alone. Learned by language modelling is what ends each turn too: the token behind it, and
where that is whitespace the special token behind it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from fusion_core.distributions import take_rows
from fusion_core.types import NO_BOUNDARY, Scored, Tokens
from fusion_core.vocabulary import Vocabulary
from tasks.artifacts import ModelRef, TokenizerRef
from tasks.corpora.conversations import Message, find_turns, messages_and_tools
from tasks.corpora.documents import Document
from tasks.models.chat_template import render_around
from tasks.models.folders import (
    context_window,
    encode_documents,
    load_config,
    load_tokenizer,
    mid_text_json,
    place_tokens,
    vocabulary_of,
)
from tasks.storage.store import Store

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Encoded:
    """The tokens of documents.

    is_text: bool per token, all of a plain document's.
    is_learned: bool per token, whether language modelling learns it: the text, and what ends each turn.
    """

    tokens: Tokens
    is_text: Tensor
    is_learned: Tensor

    def hide_other_rows(self, scored: Scored) -> Scored:
        """The same tokens as they were scored, with every row absent and without nll whose label isn't text.

        The last row of a document has no label and goes by its own token.
        """
        if bool(self.is_text.all()):
            return scored
        shown = self.is_text.clone()
        within = self.tokens.doc_of_token.diff() == 0
        shown[:-1] = self.is_text[1:].where(within, shown[:-1])
        rows = torch.arange(len(shown)).where(shown, -1)
        return replace(scored, dist=take_rows(scored.dist, rows), nll=scored.nll.masked_fill(~shown, torch.nan))


@dataclass(frozen=True)
class Encoder:
    """A model's tokenizer and chat template.

    name: how messages call the model.
    window: tokens that the model reads at most; None when its config names no limit, and of a tokenizer alone.
    """

    name: str
    folder: Path  # as it was fetched: a narrow cache may let go of it
    tokenizer: "PreTrainedTokenizerFast"
    vocabulary: Vocabulary
    window: int | None

    @classmethod
    def load(cls, store: Store, model: ModelRef | TokenizerRef) -> Self:
        """The encoder of a model in the store."""
        folder, manifest = store.fetch(model), store.manifest(model)
        facts = manifest.facts if manifest else {}
        tokenizer = load_tokenizer(folder)
        window = context_window(load_config(folder)) if isinstance(model, ModelRef) else None
        name = str(facts.get("id") or facts.get("path") or model)
        return cls(name, folder, tokenizer, vocabulary_of(tokenizer), window)

    def check(self, pieces: Sequence[Document]) -> None:
        """Raises `ValueError` for conversations where the model has no chat template."""
        if not self.tokenizer.chat_template and (chats := sum(bool(piece.messages) for piece in pieces)):
            raise ValueError(
                f"model {self.name}: expected a chat template to read {chats} conversations with, found none; use a "
                "chat model, or set chat_template for this model"
            )

    def __call__(self, pieces: Sequence[Document]) -> Encoded:
        """The tokens of pieces, as `encode_documents` gives them, and of conversations.

        Raises `ValueError` for a conversation without a chat template, or that the template can't show.
        """
        self.check(pieces)
        plain = [piece for piece in pieces if not piece.messages]
        tokens = encode_documents(self.tokenizer, self.vocabulary, [p.text for p in plain], [p.final for p in plain])
        whole = torch.ones_like(tokens.ids, dtype=torch.bool)
        if len(plain) == len(pieces):
            return Encoded(tokens, whole, whole)
        columns = tokens.ids, tokens.boundaries, whole, whole
        of_plain = (tuple(c[a:b] for c in columns) for a, b in pairwise(tokens.doc_offsets.tolist()))
        of_chats = self._encode_chats([piece for piece in pieces if piece.messages])
        documents = [next(of_chats if piece.messages else of_plain) for piece in pieces]
        ids, boundaries, is_text, is_learned = (torch.cat(column) for column in zip(*documents, strict=True))
        offsets = torch.tensor([0, *(len(document[0]) for document in documents)]).cumsum(0)
        return Encoded(Tokens(ids, boundaries, offsets), is_text, is_learned)

    def count_unseen_tools(self, pieces: Sequence[Document]) -> int:
        """How many conversations offer tools that the model never reads of: its chat template doesn't mention any."""
        if "tools" in str(self.tokenizer.chat_template):
            return 0
        return sum(bool(piece.messages and messages_and_tools(piece)[1]) for piece in pieces)

    def _encode_chats(self, pieces: Sequence[Document]) -> Iterator[tuple[Tensor, ...]]:
        """Ids, boundaries, is_text and is_learned of each conversation."""
        read = [messages_and_tools(piece) for piece in pieces]
        chats, tools = [messages for messages, _ in read], [offered for _, offered in read]
        numbers = [find_turns(chat) for chat in chats]
        turns = [[chat[n]["content"] for n in of_chat] for chat, of_chat in zip(chats, numbers, strict=True)]
        shown = zip(chats, numbers, self._find_forged(chats, numbers), tools, strict=True)
        around = self._cut_around([render_around(self.tokenizer, *one, self._special) for one in shown])
        said = iter(self._encode_turns([turn for of_chat in turns for turn in of_chat]))
        for of_chat in turns:
            parts = [_around(next(around), 0, 0)]
            place = 0
            for turn in of_chat:
                ids, ends = next(said)
                ends = torch.where(ends == NO_BOUNDARY, ends, ends + place)
                place += len(turn.encode())
                is_turn, rest = torch.ones_like(ids, dtype=torch.bool), next(around)
                parts += [(ids, ends, is_turn, is_turn), _around(rest, place, self._count_ending(rest))]
            parts[-1][1].fill_(NO_BOUNDARY)  # nothing begins behind the last turn
            ids, boundaries, is_text, is_learned = (torch.cat(column) for column in zip(*parts, strict=True))
            yield ids, _keep_last(boundaries), is_text, is_learned

    def _find_forged(self, chats: Sequence[list[Message]], turns: Sequence[list[int]]) -> list[list[int]]:
        """Of each conversation the messages, turns excepted, with what looks like a special token."""
        others = [
            [n for n, message in enumerate(chat) if message.get("content") and n not in of_chat]
            for chat, of_chat in zip(chats, turns, strict=True)
        ]
        texts = [chat[number]["content"] for chat, numbers in zip(chats, others, strict=True) for number in numbers]
        cut = iter(_cut(self._within, texts, is_text=False))
        return [
            [n for n in numbers if bool((self.vocabulary.surface_lengths[next(cut)] == 0).any())] for numbers in others
        ]

    def _cut_around(self, around: Sequence[list[list[str]]]) -> Iterator[Tensor]:
        """Ids of what is before and behind turns, one conversation after the other."""
        texts = [
            text for chat in around for number, block in enumerate(chat) for text in block[0 if number else 2 :: 2]
        ]
        begins = iter(_cut(self._begin, [chat[0][0] for chat in around], is_text=False))
        own = iter(_cut(self._within, texts, is_text=False))
        words = iter(_cut(self._within, [w for chat in around for block in chat for w in block[1::2]], is_text=True))
        for chat in around:
            for number, block in enumerate(chat):
                parts = [next(own if number else begins)]
                for _ in block[1::2]:
                    parts += [next(words), next(own)]
                yield torch.cat(parts)

    def _encode_turns(self, turns: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Ids of each turn, and where they end in it."""
        if not turns:
            return []
        self._within.encode_special_tokens = True
        cut = self._within.encode_batch(list(turns), add_special_tokens=False)
        read = place_tokens(self.vocabulary, turns, [c.ids for c in cut], lambda: [c.offsets for c in cut])
        edges = read.doc_offsets[1:-1]
        columns = (torch.tensor_split(column, edges) for column in (read.ids, read.boundaries))
        return list(zip(*columns, strict=True))

    def _count_ending(self, behind: Tensor) -> int:
        """How many of the tokens behind a turn end it: one, or those through a special one that follows whitespace."""
        is_special = self.vocabulary.surface_lengths[behind] == 0
        first = int(is_special.int().argmax()) if is_special.any() else 0
        return 1 if self.vocabulary.join_surfaces(behind[:first]).tobytes().strip() else first + 1

    @cached_property
    def _special(self) -> list[str]:
        """What special tokens look like."""
        added = self.tokenizer.added_tokens_decoder
        return [token.content for number, token in added.items() if self.vocabulary.surface_lengths[number] == 0]

    @cached_property
    def _begin(self) -> "Tokenizer":
        """Cuts what begins a conversation."""
        return _load(self.tokenizer.backend_tokenizer.to_str())

    @cached_property
    def _within(self) -> "Tokenizer":
        """Cuts what lies within one."""
        return _load(mid_text_json(self.tokenizer))


def _load(tokenizer_json: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer_json)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _cut(backend: "Tokenizer", texts: Sequence[str], *, is_text: bool) -> list[Tensor]:
    """Ids of each; what looks like a special token is one in a template and text in text."""
    backend.encode_special_tokens = is_text
    cut = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [torch.tensor(encoding.ids, dtype=torch.int64) for encoding in cut]


def _around(ids: Tensor, place: int, learned: int) -> tuple[Tensor, ...]:
    """Columns of tokens around turns, the last of which stands at `place` and the first `learned` are learned."""
    boundaries = torch.full_like(ids, NO_BOUNDARY)
    boundaries[-1:] = place
    return ids, boundaries, torch.zeros_like(ids, dtype=torch.bool), torch.arange(len(ids)) < learned


def _keep_last(boundaries: Tensor) -> Tensor:
    """The same, of several tokens that stand at one place only the last one there."""
    known = (boundaries != NO_BOUNDARY).nonzero().squeeze(1)
    repeated = boundaries[known][1:] == boundaries[known][:-1]
    return boundaries.index_fill(0, known[:-1][repeated], NO_BOUNDARY)
