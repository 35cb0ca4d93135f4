"""What every public function says to input that doesn't fit: what it expected, what it found, and the way out."""

from collections.abc import Callable
from dataclasses import replace

import jaxtyping
import pytest
import torch
from pydantic import ValidationError

from fusion_core.alignment import ByteBoundary, ExactDTW, MinEditDTW, Pair, common_rows, summarize
from fusion_core.distributions import (
    Sampled,
    TopK,
    TopP,
    absent_rows,
    concatenate,
    finite_rows,
    mix,
    reduce_logits,
    take_rows,
)
from fusion_core.divergences import JSD
from fusion_core.dtw import Sequences, warp
from fusion_core.fusion import AvgCE, MinCE, StaticWeights, as_candidate, summarize_fusion
from fusion_core.losses import fusion_loss, fusion_loss_from_logits, raise_lm_weight
from fusion_core.metrics import bits_per_byte, bootstrap_interval, paired_bootstrap
from fusion_core.min_edit import MinEdit
from fusion_core.pair_counts import PairCounts
from fusion_core.reference import Targets, choose_targets, collate_targets, extract, mix_targets, pack, split_long_text
from fusion_core.types import Aligned, Fused, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocab_mapping import BytePiece, Canonical
from fusion_core.vocabulary import Vocabulary, read_vocabulary, token_boundaries

INF, NAN = torch.inf, torch.nan
VOCABULARY = Vocabulary((b"", b"", b"a", b"b"), {"bos": 0, "eos": 1}, False, False, ("<s>", "</s>", "a", "b"))
SMALLER = Vocabulary((b"", b"", b"a"), {"bos": 0, "eos": 1}, False, False)
TOKENS = Tokens(torch.tensor([0, 2, 3, 1]), torch.tensor([0, 1, 2, -1]), torch.tensor([0, 4]))
ROWS = TokenDist(
    torch.tensor([0, 1, 2, 3, 3]), torch.tensor([2, 3, 1]), torch.log(torch.tensor([0.5, 0.25, 1.0])),
    torch.log(torch.tensor([0.5, 0.75, 0.0, 0.0])), torch.tensor([-INF, -INF, -INF, 0.0]), 4,
)  # fmt: skip
SCORED = Scored(TOKENS, ROWS, torch.tensor([1.0, 2.0, 0.5, NAN]))
PAIR = Pair(VOCABULARY, VOCABULARY, VocabMap(torch.arange(4), 4), lambda texts: [[2] for _ in texts])
ALIGNED = as_candidate(SCORED)
FUSED = MinCE()([ALIGNED], TOKENS)
LOGITS = torch.arange(12.0).view(3, 4)
LABELS = torch.tensor([1, 2, -1])
HEAD = {
    "hidden": torch.ones(4, 2), "head_weight": torch.ones(4, 2), "labels": torch.tensor([2, 3, 1, -100]),
    "teacher": ROWS,
}  # fmt: skip
TARGETS = Targets(torch.zeros(2, 3, 1, dtype=torch.int64), torch.ones(2, 3, 1))
SEQUENCES = Sequences(["a"], torch.zeros(2, dtype=torch.int64).numpy(), torch.tensor([0, 2]).numpy())


def longer(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, values[:1]])


def with_logs(**changes: torch.Tensor) -> Scored:
    return replace(SCORED, dist=replace(ROWS, **changes))


def align(source: Scored = SCORED, target: Tokens = TOKENS, pair: Pair = PAIR) -> Callable[[], object]:
    return lambda: [strategy(source, target, pair) for strategy in (ByteBoundary(), ExactDTW(), MinEditDTW())]


def loss(**changes: object) -> Callable[[], object]:
    return lambda: fusion_loss(**{**HEAD, **changes})


SHAPES: dict[str, tuple[Callable[[], object], str]] = {
    "a row without an offset": (lambda: replace(ROWS, row_offsets=ROWS.row_offsets[1:]), r"one longer.*\(4,\)"),
    "an id without a logprob": (lambda: replace(ROWS, ids=longer(ROWS.ids)), r"as long as ids \(4,\).*\(3,\)"),
    "a tail for each row but one": (lambda: replace(ROWS, unknown_logprob=ROWS.tail_logprob[1:]), r"\(3,\)"),
    "a token without boundary": (
        lambda: replace(TOKENS, boundaries=TOKENS.boundaries[1:]),
        r"\(3,\) boundaries.*\(4,\)",
    ),
    "documents past the tokens": (lambda: replace(TOKENS, doc_offsets=torch.tensor([0, 5])), r"tokens, 4.*\[0, 5\]"),
    "documents that overlap": (lambda: replace(TOKENS, doc_offsets=torch.tensor([0, 3, 1, 4])), r"\[0, 3, 1, 4\]"),
    "many documents that overlap": (
        lambda: replace(TOKENS, doc_offsets=torch.tensor([0, 3, *[1] * 5, 2, 4])), r"\[0, 3, 1, 1 \.\.\. 1, 2, 4\]",
    ),
    "no documents, not even an end": (lambda: replace(TOKENS, doc_offsets=torch.tensor([])), r"tokens, 4.*\[\]"),
    "a token without nll": (lambda: replace(SCORED, nll=SCORED.nll[1:]), "expected 4 .*'nll': 3"),
    "a token without row": (lambda: replace(SCORED, dist=ROWS.rows(0, 3)), "expected 4 .*'rows': 3"),
    "a row without span": (lambda: replace(ALIGNED, span_nll=ALIGNED.span_nll[1:]), "expected 4 .*'span_nll': 3"),
    "a row without winner": (lambda: replace(FUSED, winner=FUSED.winner[1:]), "expected 4 .*'winner': 3"),
    "a map past its target": (lambda: VocabMap(torch.tensor([0, 4]), 4), r"0\.\.3.*0\.\.4"),
    "a map to no id": (lambda: VocabMap(torch.tensor([0, -2]), 4), r"-2\.\.0"),
}  # fmt: skip

ROWS_AND_LOGITS: dict[str, tuple[Callable[[], object], str]] = {
    "entries that no row has": (
        lambda: replace(ROWS, row_offsets=torch.tensor([0, 1, 1, 1, 2])).check(),
        r"entries, 3.*0\.\.2",
    ),
    "rows that overlap": (lambda: replace(ROWS, row_offsets=torch.tensor([0, 2, 1, 3, 3])).check(), "1 times falling"),
    "kept ids outside": (lambda: replace(ROWS, ids=ROWS.ids + 1).check(), r"0\.\.3, found 2\.\.4"),
    "kept ids below 0": (lambda: replace(ROWS, ids=ROWS.ids - 2).check(), r"found -1\.\.1"),
    "a kept NaN": (lambda: replace(ROWS, logprobs=ROWS.logprobs * NAN).check(), "'logprobs': 3"),
    "probabilities for logs": (lambda: replace(ROWS, tail_logprob=torch.full((4,), 0.5)).check(), "'tail_logprob': 4"),
    "unknown NaN": (lambda: replace(ROWS, unknown_logprob=torch.full((4,), NAN)).check(), "'unknown_logprob': 4"),
    "fewer rows than none": (lambda: absent_rows(-1, 4), "found -1"),
    "nothing to join": (lambda: concatenate([]), "no distribution at all"),
    "rows of two vocabularies": (lambda: concatenate([ROWS, replace(ROWS, vocab_size=5)]), "sizes: 4, 5"),
    "a row past the last": (lambda: take_rows(ROWS, torch.tensor([0, 4])), r"0\.\.3.*0\.\.4"),
    "a row before the first": (lambda: take_rows(ROWS, torch.tensor([-2])), r"-2\.\.-2"),
    "a row of none": (lambda: take_rows(ROWS.rows(0, 0), torch.tensor([0])), r"0\.\.0"),
    "weights for other rows": (lambda: mix([ROWS, ROWS], torch.ones(2, 3) / 2), r"\(2, 4\).*\(2, 3\)"),
    "weights that are NaN": (lambda: mix([ROWS], torch.full((1, 4), NAN)), "not negative"),
    "logits of a batch": (lambda: TopK()(LOGITS[None], 4), r"\(1, 3, 4\)"),
    "logits of a batch, checked": (lambda: finite_rows(LOGITS[None], 4), r"\(1, 3, 4\)"),
    "a vocabulary past the logits": (lambda: finite_rows(LOGITS, 5), "4 tokens .* 5"),
    "a NaN among the logits": (lambda: TopP()(LOGITS * NAN, 4), "3 of 3 rows"),
    "a label too many": (lambda: reduce_logits(LOGITS, longer(LABELS), TopK(), 4), r"3 rows, found \(4,\)"),
    "a label outside": (lambda: reduce_logits(LOGITS, LABELS + 2, TopK(), 4), r"0\.\.3.*1\.\.4"),
    "chunks of no row": (lambda: reduce_logits(LOGITS, LABELS, TopK(), 4, chunk_rows=-1), "found -1"),
    "a key too few": (
        lambda: reduce_logits(LOGITS, LABELS, Sampled(), 4, row_keys=LABELS[1:]),
        r"3 rows, found \(2,\)",
    ),
}  # fmt: skip

TOKENIZERS: dict[str, tuple[Callable[[], object], str]] = {
    "no tokenizer at all": (lambda: read_vocabulary({"version": 1}, {}), r"a model.*\['version'\]"),
    "a role outside": (lambda: replace(SMALLER, roles={"eos": 3}), r"0\.\.2.*'eos': 3"),
    "pieces for other ids": (lambda: replace(SMALLER, pieces=("a",)), "1 pieces for 3"),
    "bytes of no id": (lambda: SMALLER.join_surfaces(torch.tensor([0, -1])), r"0\.\.2.*-1\.\.0"),
    "bytes of an id outside": (lambda: SMALLER.join_surfaces(torch.tensor([3])), r"3\.\.3"),
    "offsets of other tokens": (
        lambda: token_boundaries(SMALLER, torch.tensor([2]), torch.tensor([0, 2]), [b"a"]), r"ids, 1.*0\.\.2",
    ),
    "spans of other tokens": (
        lambda: token_boundaries(SMALLER, torch.tensor([2]), torch.tensor([0, 1]), [b"x"], torch.zeros(2, 2).long()),
        r"1 tokens, found spans \(2, 2\)",
    ),
    "spans of another text": (
        lambda: token_boundaries(SMALLER, torch.tensor([2]), torch.tensor([0, 1]), [b"x"], torch.tensor([[0, 2]])),
        r"1 characters.*0\.\.2",
    ),
    "an encode of another tokenizer": (lambda: BytePiece()(SMALLER, SMALLER, lambda texts: [[7]]), r"0\.\.2.*found 7"),
    "an encode that loses texts": (lambda: Canonical()(SMALLER, SMALLER, lambda texts: []), "1 texts, but found 0"),
    "strings without pieces": (lambda: MinEdit()(SMALLER, VOCABULARY), "0 pieces for 3"),
    "a pair without a count": (
        lambda: PairCounts.of(*[torch.ones(2).long()] * 2, torch.ones(1).long()), "2, found 2 and 1",
    ),
    "counts of another vocabulary": (
        lambda: PairCounts.of(*[torch.tensor([3])] * 3).with_bytes(SMALLER, VOCABULARY), r"0\.\.2.*3 to 3",
    ),
    "a token that is no string": (lambda: warp(replace(SEQUENCES, strings=[]), SEQUENCES), r"0\.\.-1.*0\.\.0"),
}  # fmt: skip

ALIGNMENT: dict[str, tuple[Callable[[], object], str]] = {
    "a map between others": (lambda: replace(PAIR, source=SMALLER), "from 3 to 4 ids, but found 4"),
    "rows over another vocabulary": (align(with_logs(vocab_size=5)), "vocabulary of 4 ids, but found 5"),
    "source ids outside": (
        align(replace(SCORED, tokens=replace(TOKENS, ids=TOKENS.ids + 1))),
        r"source's.*0\.\.3.*1\.\.4",
    ),
    "target ids outside": (align(target=replace(TOKENS, ids=TOKENS.ids - 1)), r"target's.*-1\.\.2"),
    "a source row with NaN": (align(with_logs(tail_logprob=ROWS.tail_logprob * NAN)), "'tail_logprob': 4"),
    "a source row of ids outside": (align(with_logs(ids=ROWS.ids + 1)), r"2\.\.4"),
    "a label without nll": (align(replace(SCORED, nll=SCORED.nll * NAN)), "3 of 4"),
    "a row's mark too few": (
        lambda: summarize(ALIGNED, torch.ones(3).bool()), "4 marks, .*found 3",
    ),
    "other documents": (lambda: common_rows(TOKENS, replace(TOKENS, doc_offsets=torch.tensor([0, 2, 4]))), "1 and 2"),
}  # fmt: skip

FUSION: dict[str, tuple[Callable[[], object], str]] = {
    "nobody to fuse": (lambda: MinCE()([], TOKENS), "found 0"),
    "rows of another target": (
        lambda: AvgCE()([Aligned(ROWS.rows(0, 3), *[torch.ones(3)] * 2)], TOKENS),
        r"4 rows.*\[3\]",
    ),
    "candidates of two vocabularies": (
        lambda: MinCE()([ALIGNED, replace(ALIGNED, dist=replace(ROWS, vocab_size=5))], TOKENS), "sizes: 4, 5",
    ),
    "a weight too few": (lambda: StaticWeights(weights=(1,))([ALIGNED] * 2, TOKENS), "1 weights for 2"),
    "facts of nobody": (lambda: summarize_fusion(FUSED, [], TOKENS), "found 0"),
    "a mark too many": (lambda: summarize_fusion(FUSED, [ALIGNED], TOKENS, torch.ones(2).bool()), "1 marks.*found 2"),
    "a row's mark too few": (
        lambda: summarize_fusion(FUSED, [ALIGNED], TOKENS, wanted=torch.ones(3).bool()), "4 marks, .*found 3",
    ),
}  # fmt: skip

LOSSES: dict[str, tuple[Callable[[], object], str]] = {
    "a head of another width": (loss(head_weight=torch.ones(4, 3)), r"\(4, 2\) and \(4, 3\)"),
    "hidden states of a batch": (loss(hidden=torch.ones(1, 4, 2)), r"\(1, 4, 2\)"),
    "a bias of another head": (loss(head_bias=torch.ones(1)), r"4 tokens, found \(1,\)"),
    "a teacher of other rows": (loss(teacher=ROWS.rows(0, 3)), "3 teacher rows"),
    "a teacher over more tokens": (loss(teacher=replace(ROWS, vocab_size=5)), "4 tokens .* over 5"),
    "a label outside": (loss(labels=torch.tensor([4, 0, 0, 0])), r"0\.\.3.*0\.\.4"),
    "a weight outside": (loss(lm_weight=NAN), "found nan"),
    "chunks of no row": (loss(chunk_rows=0), "found 0"),
    "chunks of no row, from logits": (
        lambda: fusion_loss_from_logits(torch.ones(4, 4), HEAD["labels"], ROWS, chunk_rows=-2), "found -2",
    ),
    "logits of a batch": (lambda: fusion_loss_from_logits(torch.ones(1, 4, 4), HEAD["labels"], ROWS), r"\(1, 4, 4\)"),
    "a start outside": (lambda: raise_lm_weight(1.5, 0, 10), "found 1.5"),
    "a step before the first": (lambda: raise_lm_weight(0.5, -1, 10), "and -1"),
    "a text without bytes": (lambda: bits_per_byte(1.0, 0), "found 0"),
    "a document without domain": (lambda: bootstrap_interval([1.0], [1], []), "0 .*documents"),
    "a document of one model": (lambda: paired_bootstrap([1.0], [1.0, 2.0], [1], ["x"]), r"\(2,\)"),
    "a nll that is NaN": (lambda: bootstrap_interval([NAN], [1], ["x"]), "1 of 1"),
}  # fmt: skip

REFERENCE: dict[str, tuple[Callable[[], object], str]] = {
    "k past the vocabulary": (lambda: extract(LOGITS[None], LABELS[None], LABELS[None], 5), r"1\.\.4.*found 5"),
    "labels of other rows": (lambda: extract(LOGITS[None], LABELS[None, 1:], LABELS[None], 2), r"\(1, 2\)"),
    "targets of other rows": (
        lambda: collate_targets(TARGETS.ids, TARGETS.probs[1:], torch.ones(2).long(), pad_id=0), r"\(1, 3, 1\)",
    ),
    "a reward too many": (lambda: choose_targets([TARGETS], torch.ones(2, 2), base_teaches=True), r"1 .*\(2, 2\)"),
    "nothing to mix": (lambda: mix_targets([], torch.ones(2, 0)), "0 .at least 1"),
    "blocks of no token": (lambda: pack({"input_ids": [[1]]}, 0), "found 1 and 0"),
    "nobody to cut by": (lambda: split_long_text("a", [], 4), "found 0 and 4"),
}  # fmt: skip

TABLES = {"shapes": SHAPES, "rows": ROWS_AND_LOGITS, "tokenizers": TOKENIZERS, "alignment": ALIGNMENT,
          "fusion": FUSION, "losses": LOSSES, "reference": REFERENCE}  # fmt: skip
CASES = [pytest.param(*case, id=f"{name}: {text}") for name, table in TABLES.items() for text, case in table.items()]


@pytest.mark.parametrize(("call", "message"), CASES)
def test_what_does_not_fit_is_refused_with_both_numbers_and_a_way_out(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "; " in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TopK, "k", 0), (TopP, "p", 0), (TopP, "p", 1.5), (TopP, "k_max", 0), (Sampled, "n", 0), (Sampled, "seed", -1),
        (TopK, "temperature", 0), (TopK, "temperature", NAN), (JSD, "beta", 1), (AvgCE, "tau", 0), (AvgCE, "tau", INF),
        (MinCE, "block_tokens", 0), (MinCE, "window_bytes", 0), (StaticWeights, "weights", (-1.0, 2.0)),
        (MinEdit, "max_distance", -1), (ByteBoundary, "lookahead", 9), (ByteBoundary, "cover", 3),
        (ByteBoundary, "max_unknown", NAN), (MinEditDTW, "unmatched", "one_hot"), (TopK, "unheard_of", 1),
    ],
)  # fmt: skip
def test_a_choice_out_of_range_is_refused_by_its_name(kind, field, value):
    with pytest.raises(ValidationError, match=field):
        kind(**{field: value})


def test_what_fits_passes():
    """The cases above change one thing each of what is refused by none of them."""
    ROWS.check()
    align()()
    assert Fused(ROWS, torch.zeros(4, dtype=torch.int64)).dist is ROWS
    assert loss()().loss.isfinite()
    assert MinCE()([ALIGNED, ALIGNED], TOKENS).winner.tolist() == [0, 0, 0, -1]
    take_rows(ROWS, torch.tensor([-1, 3]))
    TopK(k=9)(LOGITS, 4)
    warp(SEQUENCES, SEQUENCES)
