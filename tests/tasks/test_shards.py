"""Distributions on disk: what is written is what is read, narrow, and the same bytes every time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.alignment import Pair
from fusion_core.pair_counts import PairCounts, sum_counts
from fusion_core.types import Aligned, Fused, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary
from tasks.artifacts import StoreError
from tasks.shards import (
    COUNTS,
    SCORED,
    read_aligned,
    read_counts,
    read_fused,
    read_pair,
    read_scored,
    write_aligned,
    write_counts,
    write_fused,
    write_pair,
    write_scored,
)


def _dist(vocab_size: int, unknown: bool = False) -> TokenDist:
    return TokenDist(
        row_offsets=torch.tensor([0, 2, 2, 3]),
        ids=torch.tensor([vocab_size - 1, 0, 7]),
        logprobs=torch.tensor([-0.5, -2.0, -0.25]),
        tail_logprob=torch.tensor([-3.0, -torch.inf, -1.5]),
        unknown_logprob=torch.tensor([-torch.inf, 0.0, -4.0]) if unknown else torch.full((3,), -torch.inf),
        vocab_size=vocab_size,
    )


def _scored(vocab_size: int) -> Scored:
    tokens = Tokens(torch.tensor([1, 5, vocab_size - 1]), torch.tensor([0, 4, -1]), torch.tensor([0, 3]))
    return Scored(tokens, _dist(vocab_size), torch.tensor([1.25, 0.1234567, torch.nan]))


def _same(a: TokenDist, b: TokenDist) -> None:
    assert a.vocab_size == b.vocab_size
    for name in ("row_offsets", "ids", "logprobs", "tail_logprob", "unknown_logprob"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)


@pytest.mark.parametrize("vocab_size", [200, 1000, 65536, 152064])
def test_scored_survives_the_round_trip(tmp_path: Path, vocab_size: int) -> None:
    scored = _scored(vocab_size)
    write_scored(tmp_path, scored)
    back = read_scored(tmp_path)
    _same(back.dist, scored.dist)
    for name in ("ids", "boundaries", "doc_offsets"):
        assert torch.equal(getattr(back.tokens, name), getattr(scored.tokens, name))
    torch.testing.assert_close(back.nll, scored.nll, rtol=0, atol=0, equal_nan=True)


def test_aligned_and_fused_survive_the_round_trip(tmp_path: Path) -> None:
    aligned = Aligned(_dist(1000, unknown=True), torch.tensor([0.0, torch.nan, 3.5]), torch.tensor([0, 0, 2]))
    write_aligned(tmp_path, aligned)
    back = read_aligned(tmp_path)
    _same(back.dist, aligned.dist)
    torch.testing.assert_close(back.span_nll, aligned.span_nll, equal_nan=True)
    assert torch.equal(back.span_tokens, aligned.span_tokens)
    fused = Fused(_dist(1000, unknown=True), torch.tensor([2, -1, 0]))
    write_fused(tmp_path, fused)
    _same(read_fused(tmp_path).dist, fused.dist)
    assert torch.equal(read_fused(tmp_path).winner, fused.winner)


def test_what_the_originals_rules_need_survives_to_the_last_digit(tmp_path: Path) -> None:
    dist = _dist(1000, unknown=True)
    fine = {name: getattr(dist, name).double() / 3 for name in ("logprobs", "tail_logprob", "unknown_logprob")}
    dist, costs = replace(dist, **fine), torch.tensor([2.005, torch.nan], dtype=torch.float16)
    write_aligned(tmp_path, Aligned(dist, torch.zeros(3), torch.zeros(3, dtype=torch.int64), costs))
    back = read_aligned(tmp_path)
    _same(back.dist, dist)
    torch.testing.assert_close(back.cross_entropy, costs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("in_context", [False, True])
def test_a_pair_survives_the_round_trip_with_the_targets_tokenizer(tmp_path: Path, in_context: bool) -> None:
    from tokenizers import Tokenizer, models

    source = Vocabulary((b"", b"a", b"\xff"), {"eos": 0}, False, False)
    target = Vocabulary((b"b", b"a", b"ab"), {}, True, True)
    pair = Pair(source, target, VocabMap(torch.tensor([-1, 1, -1]), 3, in_context))
    tokenizer = Tokenizer(models.BPE({"b": 0, "a": 1, "ab": 2}, [("a", "b")]))
    write_pair(tmp_path, pair, tokenizer.to_str())
    back = read_pair(tmp_path)
    assert (back.source, back.target) == (source, target)
    assert torch.equal(back.vocab_map.ids, pair.vocab_map.ids)
    assert back.vocab_map.in_context == in_context
    assert back.encode is not None
    assert back.encode(["aab", ""]) == [[1, 2], []]


def test_ids_take_the_narrowest_integer_that_holds_the_vocabulary(tmp_path: Path) -> None:
    from safetensors import safe_open

    for vocab_size, dtype in [(256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.int32)]:
        write_scored(tmp_path, _scored(vocab_size))
        with safe_open(tmp_path / SCORED, framework="pt") as file:
            assert file.get_tensor("ids").dtype == dtype


@pytest.mark.parametrize(("highest", "dtype"), [(255, torch.uint8), (65535, torch.uint16), (151935, torch.int32)])
def test_counts_survive_the_round_trip_with_narrow_ids(tmp_path: Path, highest: int, dtype: torch.dtype) -> None:
    from safetensors import safe_open

    counts = PairCounts(torch.tensor([0, highest]), torch.tensor([highest, 3]), torch.tensor([2**31 - 1, 1]))
    write_counts(tmp_path, counts)
    back = read_counts(tmp_path)
    assert all(torch.equal(getattr(back, name), column) for name, column in vars(counts).items())
    with safe_open(tmp_path / COUNTS, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in ("source_ids", "target_ids")} == {dtype}


def test_no_counts_survive_the_round_trip(tmp_path: Path) -> None:
    write_counts(tmp_path, sum_counts([]))
    assert read_counts(tmp_path).counts.tolist() == []


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for _ in range(5):
        write_scored(tmp_path, _scored(1000))
        written.append((tmp_path / SCORED).read_bytes())
    assert len(set(written)) == 1


def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    save_file({"ids": torch.zeros(1)}, tmp_path / SCORED, {"llm_fuse": json.dumps({"schema_version": 99})})
    with pytest.raises(StoreError, match=r"reads up to schema 1, found 99; upgrade llm-fuse"):
        read_scored(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / SCORED).write_bytes(b"not tensors")
    with pytest.raises(StoreError, match="not a readable safetensors file"):
        read_scored(tmp_path)
