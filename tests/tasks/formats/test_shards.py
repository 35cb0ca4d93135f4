"""Distributions on disk: what is written is what is read, narrow, and the same bytes every time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fusion_core.alignment import Pair
from fusion_core.pair_counts import PairCounts, sum_counts
from fusion_core.types import Aligned, Fused, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary
from tasks.artifacts import StoreError
from tasks.formats.columns import pack_nats, unpack_nats
from tasks.formats.shards import (
    ALIGNED,
    COUNTS,
    FUSED,
    SCORED,
    FusedRows,
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


@pytest.mark.parametrize("vocab_size", [200, 1000, 65536, 152064, 2**24 + 1])
def test_scored_survives_the_round_trip(tmp_path: Path, vocab_size: int) -> None:
    scored = _scored(vocab_size)
    write_scored(tmp_path, scored)
    back = read_scored(tmp_path)
    _same(back.dist, scored.dist)
    for name in ("ids", "boundaries", "doc_offsets"):
        assert torch.equal(getattr(back.tokens, name), getattr(scored.tokens, name))
    torch.testing.assert_close(back.nll, scored.nll, rtol=0, atol=1 / 1024, equal_nan=True)


def _many(vocab_size: int, rows: int = 3000) -> Scored:
    """Rows of ten kept tokens over documents of 30 tokens of 1 to 9 bytes, with an end token each."""
    draw = torch.Generator().manual_seed(0)
    offsets = torch.arange(0, rows + 1, 30)
    lengths = torch.randint(1, 10, (rows // 30, 30), generator=draw)
    lengths[:, 0] = 0
    boundaries = lengths.cumsum(1)
    boundaries[:, -1] = -1
    dist = TokenDist(
        row_offsets=torch.arange(rows + 1) * 10,
        ids=torch.randint(vocab_size, (rows * 10,), generator=draw),
        logprobs=-9 * torch.rand(rows * 10, generator=draw),
        tail_logprob=-9 * torch.rand(rows, generator=draw),
        unknown_logprob=torch.full((rows,), -torch.inf),
        vocab_size=vocab_size,
    )
    tokens = Tokens(torch.randint(vocab_size, (rows,), generator=draw), boundaries.flatten(), offsets)
    return Scored(tokens, dist, torch.rand(rows, generator=draw))


@pytest.mark.parametrize(("vocab_size", "limit"), [(65536, 48), (152064, 70)])
def test_ten_kept_tokens_take_no_more_bytes_than_promised(tmp_path: Path, vocab_size: int, limit: float) -> None:
    write_scored(tmp_path, _many(vocab_size))
    header = 8 + int.from_bytes((tmp_path / SCORED).read_bytes()[:8], "little")
    assert ((tmp_path / SCORED).stat().st_size - header) / 3000 <= limit
    back = read_scored(tmp_path)
    assert torch.equal(back.dist.ids, _many(vocab_size).dist.ids)
    assert torch.equal(back.dist.row_offsets, _many(vocab_size).dist.row_offsets)
    assert torch.equal(back.tokens.boundaries, _many(vocab_size).tokens.boundaries)


def test_the_cost_of_any_stretch_of_text_is_off_by_a_thousandth_of_a_nat_at_most(tmp_path: Path) -> None:
    scored = _many(1000)
    scored = replace(scored, nll=torch.rand(3000, generator=torch.Generator().manual_seed(1)) ** 8 * 62)
    scored.nll[scored.tokens.boundaries == -1] = torch.nan
    write_scored(tmp_path, scored)
    back = read_scored(tmp_path).nll
    assert torch.equal(back.isnan(), scored.nll.isnan())
    before, after = (nll.double().nan_to_num(0).reshape(-1, 30).cumsum(1) for nll in (scored.nll, back))
    error = after - before
    assert float((error.amax(1) - error.amin(1)).max()) <= 1 / 1024 + 1e-6


@pytest.mark.parametrize("extreme", [63.0, 1e4, torch.inf])
def test_costs_beyond_every_model_are_rounded_alike(tmp_path: Path, extreme: float) -> None:
    scored = replace(_scored(1000), nll=torch.tensor([extreme, 0.1234567, torch.nan]))
    write_scored(tmp_path, scored)
    torch.testing.assert_close(read_scored(tmp_path).nll, scored.nll, rtol=0, atol=1 / 1024, equal_nan=True)


@pytest.mark.parametrize("extreme", [1.0, 100.0])
def test_costs_are_rounded_once_whatever_documents_are_around_them(extreme: float) -> None:
    generator = torch.Generator().manual_seed(3)
    nats = 20 * torch.rand(3000, generator=generator)
    nats[7], nats[29::30] = extreme, torch.nan

    def rounded(part: torch.Tensor) -> torch.Tensor:
        return unpack_nats(pack_nats("nll", part, torch.arange(0, len(part) + 1, 30)), "nll")

    whole = rounded(nats)
    parts = torch.cat([rounded(nats[:900]), rounded(nats[900:])])
    torch.testing.assert_close(parts, whole, rtol=0, atol=0, equal_nan=True)
    resumed = rounded(torch.cat([rounded(nats[:900]), nats[900:]]))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0, equal_nan=True)


def test_shares_of_draws_take_a_byte_each_and_come_back_as_fp16_holds_them(tmp_path: Path) -> None:
    counts = torch.arange(100_001) % 12 + 1
    shares = (counts / 12).log()
    nothing = torch.full((1,), -torch.inf)
    dist = TokenDist(torch.tensor([0, len(shares)]), torch.arange(len(shares)), shares, nothing, nothing, 152064)
    write_scored(tmp_path, Scored(Tokens(torch.tensor([7]), torch.tensor([0]), torch.tensor([0, 1])), dist, nothing))
    assert (tmp_path / SCORED).stat().st_size < 4.1 * len(shares)
    back = read_scored(tmp_path).dist
    assert torch.equal(back.logprobs, shares.half().float())
    assert back.tail_logprob.tolist() == back.unknown_logprob.tolist() == [-torch.inf]


@pytest.mark.parametrize(
    "boundaries",
    [[0, 3, -1, 3, 9, -1], [0, 3, -1, 0, 300, -1], [0, 3, -1, 0, 70_000, -1], [5, 3, 1, 0, 0, 0], [-1] * 6, [254] * 6],
)
def test_boundaries_survive_however_far_apart_and_in_whatever_order(tmp_path: Path, boundaries: list[int]) -> None:
    rows = len(boundaries)
    nothing = torch.full((rows,), -torch.inf)
    empty = TokenDist(torch.zeros(rows + 1).long(), torch.empty(0).long(), torch.empty(0), nothing, nothing, 10)
    tokens = Tokens(torch.arange(rows), torch.tensor(boundaries), torch.tensor([0, 0, 3, rows, rows]))
    write_scored(tmp_path, Scored(tokens, empty, torch.zeros(rows)))
    assert read_scored(tmp_path).tokens.boundaries.tolist() == boundaries


def test_a_file_of_the_first_layout_is_still_read(tmp_path: Path) -> None:
    scored, mark = _scored(1000), {"llm_fuse": json.dumps({"schema_version": 1, "vocab_size": 1000})}
    dist = {
        "row_offsets": scored.dist.row_offsets,
        "ids": scored.dist.ids.to(torch.uint16),
        "logprobs": scored.dist.logprobs.half(),
        "tail_logprob": scored.dist.tail_logprob.half(),
    }
    tokens = {
        "token_ids": scored.tokens.ids.to(torch.int32),
        "boundaries": scored.tokens.boundaries.to(torch.int32),
        "doc_offsets": scored.tokens.doc_offsets,
    }
    save_file({**dist, **tokens, "nll": scored.nll}, tmp_path / SCORED, mark)
    save_file({**dist, "winner": torch.zeros(3, dtype=torch.int16)}, tmp_path / FUSED, mark)
    spans = {"span_nll": scored.nll, "span_tokens": torch.ones(3, dtype=torch.int32)}
    save_file({**dist, **spans}, tmp_path / ALIGNED, mark)
    back = read_scored(tmp_path)
    _same(back.dist, scored.dist)
    assert torch.equal(back.tokens.boundaries, scored.tokens.boundaries)
    torch.testing.assert_close(back.nll, scored.nll, rtol=0, atol=0, equal_nan=True)
    _same(read_fused(tmp_path).dist, scored.dist)
    _same(FusedRows(tmp_path).rows(1, 3), scored.dist.rows(1, 3))
    _same(read_aligned(tmp_path).dist, scored.dist)
    assert read_aligned(tmp_path).span_tokens.tolist() == [1, 1, 1]


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


def test_any_rows_of_a_teacher_are_those_of_the_whole(tmp_path: Path) -> None:
    for dist in (_many(152064).dist, _many(1000).dist, _dist(1000, unknown=True)):
        write_fused(tmp_path, Fused(dist, torch.zeros(dist.num_rows, dtype=torch.int64)))
        whole, rows = read_fused(tmp_path).dist, FusedRows(tmp_path)
        for start, stop in [(0, 0), (0, 1), (1, 3), (2, dist.num_rows), (dist.num_rows, dist.num_rows)]:
            _same(rows.rows(start, stop), whole.rows(start, stop))


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

    for vocab_size, bits in [(256, [8]), (257, [16]), (2**16, [16]), (2**16 + 1, [16, 8]), (2**24 + 1, [32])]:
        write_scored(tmp_path, _scored(vocab_size))
        with safe_open(tmp_path / SCORED, framework="pt") as file:
            names = sorted(name for name in file.keys() if name.startswith("ids"))  # noqa: SIM118 - no mapping
            assert [8 * file.get_tensor(name).element_size() for name in names] == bits


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


@pytest.mark.parametrize("vocab_size", [200, 50_000, 152_064])
def test_a_compressed_shard_is_smaller_and_reads_the_same(tmp_path: Path, vocab_size: int) -> None:
    read, sizes = [], []
    for compress in (False, True):
        write_scored(tmp_path, _many(vocab_size), compress)
        sizes.append((tmp_path / SCORED).stat().st_size)
        read.append(read_scored(tmp_path))
    assert sizes[1] < sizes[0]
    _same(read[0].dist, read[1].dist)
    for name in ("ids", "boundaries", "doc_offsets"):
        assert torch.equal(getattr(read[0].tokens, name), getattr(read[1].tokens, name))
    assert torch.equal(read[0].nll, read[1].nll)


def test_a_shard_without_rows_can_be_compressed(tmp_path: Path) -> None:
    write_scored(tmp_path, _many(50_000, rows=0), compress=True)
    assert len(read_scored(tmp_path).tokens.ids) == 0


def test_damage_in_a_compressed_column_names_the_file(tmp_path: Path) -> None:
    write_scored(tmp_path, _many(50_000), compress=True)
    whole = (tmp_path / SCORED).read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    (tmp_path / SCORED).write_bytes(whole[:start] + bytes(len(whole) - start))
    with pytest.raises(StoreError, match=r"scored.safetensors: expected a file as llm-fuse writes it"):
        read_scored(tmp_path)


def test_a_newer_reader_is_needed_for_compressed_columns_alone(tmp_path: Path) -> None:
    """So that who shares a store with an older version finds what is uncompressed readable, and the rest refused."""
    for compress, version in ((False, 2), (True, 3)):
        write_scored(tmp_path, _many(50_000), compress)
        with safe_open(tmp_path / SCORED, framework="pt") as file:
            assert json.loads(file.metadata()["llm_fuse"])["schema_version"] == version


def test_a_compressed_column_that_claims_more_than_it_can_hold_is_refused_before_memory_is_asked_for(
    tmp_path: Path,
) -> None:
    write_scored(tmp_path, _many(50_000), compress=True)
    with safe_open(tmp_path / SCORED, framework="pt") as file:
        header = json.loads(file.metadata()["llm_fuse"])
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    header["compressed"]["logprobs"][1] = 2**60
    save_file(columns, tmp_path / SCORED, {"llm_fuse": json.dumps(header)})
    with pytest.raises(StoreError, match=r"logprobs: expected at most \d+ bytes in \d+, found 2305843009213693952"):
        read_scored(tmp_path)


def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    save_file({"ids": torch.zeros(1)}, tmp_path / SCORED, {"llm_fuse": json.dumps({"schema_version": 99})})
    with pytest.raises(StoreError, match=r"reads up to schema 3, found 99; upgrade llm-fuse"):
        read_scored(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / SCORED).write_bytes(b"not tensors")
    with pytest.raises(StoreError, match="not a readable safetensors file"):
        read_scored(tmp_path)
