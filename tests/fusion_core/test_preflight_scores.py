"""What a scored sample says of truncation and of the two scores."""

import math

import pytest
import torch

from fusion_core.distributions import NO_LABEL, Sampled, TopK, reduce_logits
from fusion_core.preflight import compare_choices, measure_truncation
from fusion_core.types import Scored, Tokens

VOCAB = 11


def score(mode, docs: int = 3, length: int = 9, seed: int = 0) -> tuple[Scored, torch.Tensor]:
    """A shard of random rows, and all their log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (docs * length,), generator=generator)
    offsets = torch.arange(docs + 1) * length
    boundaries = torch.arange(length).repeat(docs)
    logits = 2 * torch.randn(docs * length, VOCAB, generator=generator)
    labels = ids.roll(-1)
    labels[offsets[1:] - 1] = NO_LABEL
    dist, nll = reduce_logits(logits, labels, mode, VOCAB, row_keys=torch.arange(len(ids)))
    return Scored(Tokens(ids, boundaries, offsets), dist, nll), logits.double().log_softmax(-1)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_truncation_is_what_its_definition_says(k):
    scored, logprobs = score(TopK(k=k))
    kept = hits = nats = rows = 0.0
    for row in range(len(scored.nll)):
        if math.isnan(scored.nll[row]):
            continue
        rows += 1
        label, top = int(scored.tokens.ids[row + 1]), logprobs[row].topk(k).indices.tolist()
        mass = math.fsum(math.exp(logprobs[row, i]) for i in top)
        kept += mass
        if label in top:
            hits += 1
        else:
            nats += float(logprobs[row, label]) - math.log((1 - mass) / (VOCAB - k))
    found = measure_truncation(scored)
    assert found.rows == rows == 24
    assert found.kept == pytest.approx(kept / rows, abs=1e-6)
    assert found.label_kept == hits / rows
    assert found.nats == pytest.approx(nats / rows, abs=1e-5)


def test_nothing_is_lost_where_everything_is_kept():
    found = measure_truncation(score(TopK(k=VOCAB))[0])
    assert (found.label_kept, found.nats) == (1, 0)
    assert found.kept == pytest.approx(1, abs=1e-6)


def test_sampled_rows_have_no_tail_to_lose():
    assert math.isnan(measure_truncation(score(Sampled(n=2))[0]).nats)


def test_a_sample_without_labels_measures_nothing():
    found = measure_truncation(score(TopK(k=2), length=1)[0])
    assert (found.rows, found.kept, found.label_kept, found.nats) == (0, 0, 0, 0)


def spend(tokens: int, nats: float, docs: int = 2) -> Scored:
    """Documents of 12 bytes that a model cuts into equal tokens and pays evenly for."""
    scored, _ = score(TopK(k=1), docs=docs, length=tokens + 1)
    boundaries = (torch.arange(tokens + 1) * (12 // tokens)).repeat(docs)
    nll = torch.full_like(scored.nll, nats / tokens).where(scored.nll.isfinite(), scored.nll)
    return Scored(Tokens(scored.tokens.ids, boundaries, scored.tokens.doc_offsets), scored.dist, nll)


def test_a_finer_tokenizer_wins_by_nats_per_token_alone():
    coarse, fine = spend(tokens=3, nats=9.0), spend(tokens=6, nats=12.0)
    assert compare_choices([coarse, fine], coarse.tokens) == (2, 2)
    assert compare_choices([coarse, spend(tokens=6, nats=8.0)], coarse.tokens) == (2, 0)
    assert compare_choices([coarse, coarse], coarse.tokens) == (2, 0)


def test_one_candidate_is_no_choice():
    coarse = spend(tokens=3, nats=9.0)
    with pytest.raises(ValueError, match="at least 2 candidates, found 1"):
        compare_choices([coarse], coarse.tokens)
