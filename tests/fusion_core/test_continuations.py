"""No mass is made or lost on the way from source rows to target rows, not even where a row loses all it had."""

import numpy as np
import pytest
import torch

from fusion_core.alignment import ByteBoundary, Pair, common_rows
from fusion_core.alignment.context import LEFT_OUT, find_targets
from fusion_core.alignment.continuations import continue_text
from fusion_core.alignment.rows import spent_nats, stand
from fusion_core.alignment.source_text import SourceText
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocab_mapping import Canonical
from fusion_core.vocabulary import Vocabulary
from tests.bench.exactness import draw_language, draw_tokenizer, make_pair, read_language

INF = torch.inf


@pytest.mark.parametrize("k", [None, 2])
def test_before_anything_is_left_out_continuations_tail_and_unknown_sum_to_one(k):
    rng = np.random.default_rng(7)
    language, tokenizers = draw_language(rng, longest=5), [draw_tokenizer(rng) for _ in range(2)]
    source, truth = read_language(language, tokenizers[0], k), read_language(language, tokenizers[1])
    pair, spent = make_pair(*tokenizers, Canonical()), spent_nats(source)
    standing = stand(source.tokens, truth.tokens, pair, common_rows(source.tokens, truth.tokens), bridge=True)
    text = SourceText(source, spent, pair, with_labels=True)
    label_end = truth.tokens.boundaries.roll(-1)
    label_end[truth.tokens.doc_offsets[1:] - 1] = NO_BOUNDARY
    found = continue_text(text, standing, label_end, cover=2, lookahead=3, max_unknown=0.45)
    left_out = find_targets(found, source.tokens, truth.tokens, pair) == LEFT_OUT
    missing = found.tail_logprob.exp() + found.unknown_logprob.exp()
    torch.testing.assert_close(
        missing.index_add(0, found.row, found.logprobs.exp()), torch.ones_like(missing), rtol=0, atol=1e-12
    )
    assert left_out.any()


def test_a_row_whose_every_candidate_is_left_out_is_absent():
    """Rows without a tail can lose all they have: sampled ones, and those inside a source token."""
    vocabulary = Vocabulary((b"", b"", b"a", b"aa"), {"bos": 0, "eos": 1}, False, False)
    pair = Pair(
        vocabulary, vocabulary, VocabMap(torch.arange(4), 4, in_context=True), lambda texts: [[3] for _ in texts]
    )
    tokens = Tokens(torch.tensor([0, 2, 1]), torch.tensor([0, 1, NO_BOUNDARY]), torch.tensor([0, 3]))
    sure = TokenDist(
        torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2]), torch.zeros(2), torch.full((3,), -INF),
        torch.tensor([-INF, -INF, 0.0]), 4,
    )  # fmt: skip
    found = ByteBoundary()(Scored(tokens, sure, torch.tensor([1.0, 1.0, torch.nan])), tokens, pair).dist
    assert found.present.tolist() == [True, False, False]  # "a" after "a" would be "aa"
    assert found.tail_logprob.tolist() == [-INF] * 3
    assert found.unknown_logprob.tolist() == [-INF, 0, 0]


LETTERS = Vocabulary((b"", b"a", b"b", b" "), {"bos": 0}, False, False)
OPTIONS = [{}, {"lookahead": 2}, {"cover": 2, "lookahead": 2, "bridge": True}, {"cover": 1, "tail": "strict"}]


def pair_with_letters(source):
    def encode(texts):
        return [[LETTERS.id_of_surface[letter.encode()] for letter in text] for text in texts]

    return Pair(source, LETTERS, VocabMap(torch.arange(source.size), LETTERS.size, in_context=True), encode)


def scored_of(ids, boundaries, offsets, vocab_size):
    """Rows that keep one candidate each and leave a tail."""
    tokens, number = Tokens(*(torch.tensor(v, dtype=torch.int64) for v in (ids, boundaries, offsets))), len(ids)
    logs = [torch.tensor(share).log().expand(number) for share in (0.75, 0.25, 0.0)]
    kept = torch.tensor([*ids[1:], 1][:number], dtype=torch.int64)
    dist = TokenDist(torch.arange(number + 1), kept, *logs, vocab_size)
    return Scored(tokens, dist, torch.full((number,), 0.5))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_last_row_of_a_shard_has_nothing_behind_it_to_look_at(options):
    """A source that strips the space at a text's end stands on its last row where the target's label follows."""
    source = scored_of([0, 1, 2], [0, 1, 2], [0, 3], 3)
    target = Tokens(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 3]), torch.tensor([0, 4]))
    pair = pair_with_letters(Vocabulary((b"", b"a", b"b"), {"bos": 0}, False, False))
    found = ByteBoundary(**options)(source, target, pair).dist
    assert found.present.tolist() == [True, True, True, False]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_source_without_tokens_leaves_every_row_absent(options):
    """Empty texts, which the target begins and the source doesn't."""
    source, target = scored_of([], [], [0, 0], 4), Tokens(torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 1]))
    found = ByteBoundary(**options)(source, target, pair_with_letters(LETTERS)).dist
    assert (found.num_rows, found.present.tolist(), found.unknown_logprob.tolist()) == (1, [False], [0.0])
