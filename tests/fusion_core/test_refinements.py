"""Covers, bridges, looking ahead and tokenizing in context, each against its definition by loops over strings."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fusion_core.alignment import AlignmentStrategy, ByteBoundary, Pair
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocab_mapping import BytePiece, Canonical
from fusion_core.vocabulary import Vocabulary
from tests.bench.exactness import END, draw_language, draw_tokenizer, make_pair, read_language

INF = math.inf
OPTIONS = {
    "canonical": ({}, Canonical()),
    "cover 1": ({"cover": 1, "max_unknown": 0.45}, Canonical()),
    "cover 2": ({"cover": 2, "max_unknown": 0.45}, Canonical()),
    "cover 2, careful": ({"cover": 2, "max_unknown": 0.05}, Canonical()),
    "bridge": ({"bridge": True}, Canonical()),
    "bridge of first pieces": ({"bridge": True}, BytePiece()),
    "lookahead 1": ({"lookahead": 1}, Canonical()),
    "lookahead 3 of first pieces": ({"lookahead": 3}, BytePiece()),
    "all": ({"cover": 2, "bridge": True, "lookahead": 3, "max_unknown": 0.45}, Canonical()),
}


class Definition:
    """One row of a shard at a time, in probabilities, by loops over tokens and strings."""

    def __init__(self, source, target, tokenizers, mapping, cover=0, lookahead=0, bridge=False, max_unknown=1.0):
        self.source, self.target = source, target
        self.read_by, self.target_tokenizer = tokenizers
        self.surfaces = self.read_by.vocabulary.surfaces
        self.in_context = isinstance(mapping, Canonical)
        self.cover, self.lookahead, self.bridge, self.max_unknown = cover, lookahead, bridge, max_unknown

    def kept(self, row):
        start, stop = self.source.dist.row_offsets[row : row + 2].tolist()
        ids = self.source.dist.ids[start:stop].tolist()
        return dict(zip(ids, self.source.dist.logprobs[start:stop].exp().tolist(), strict=True))

    def candidates(self, row):
        """Kept tokens and tail of a source row, the token really read among the kept ones if looking ahead."""
        kept, tail = self.kept(row), math.exp(self.source.dist.tail_logprob[row])
        nll = self.source.nll[row].item()
        label = self.source.tokens.ids[row + 1].item() if not math.isnan(nll) else None
        if self.lookahead and label is not None and label not in kept:
            kept[label] = math.exp(-nll)
            tail = max(tail - kept[label], 0.0)
        return kept, tail

    def lost(self, row, text, found):
        longer = sum(1 for s in self.surfaces if s and s.startswith(text) and len(s) > len(text))
        least = min(self.kept(row).values())
        return min(self.candidates(row)[1], max(longer - found, 0) * least)

    def row(self, i):
        """Kept, tail and unknown of the target's row `i`."""
        tokens, boundary = self.source.tokens, self.target.boundaries[i].item()
        doc = self.target.doc_of_token[i].item()
        start, stop = tokens.doc_offsets[doc : doc + 2].tolist()
        before = [r for r in range(start, stop) if 0 <= tokens.boundaries[r].item() <= boundary]
        if boundary == NO_BOUNDARY:
            return {}, 0.0, 1.0
        inside = boundary - tokens.boundaries[before[-1]].item()
        if inside and not self.bridge:
            return {}, 0.0, 1.0
        entries, tail, unknown = self.weigh(before[-1], start, inside)
        entries, unknown = self.look_ahead(i, before[-1], stop, inside, entries, unknown)
        return self.count(i, entries, tail, unknown)

    def weigh(self, row, start, inside):
        """(text, token, skip, probability) of what may come next, with tail and unknown."""
        surface = [self.surfaces[t] for t in self.source.tokens.ids.tolist()]
        kept, tail = self.candidates(row)
        unknown, total = 0.0, 1.0
        entries = [(self.surfaces[t], t, 0, p) for t, p in kept.items()]
        if inside:
            read = surface[row + 1][:inside]
            begins = [(s, t, p) for s, t, _, p in entries if s.startswith(read)]
            unknown = self.lost(row, read, len(begins))
            entries = [(s[inside:], t, inside, p) for s, t, p in begins if s != read]
            tail = sum(p for s, _, p in begins if s == read)
            total = sum(p for *_, p in begins) + unknown
        covers, lost = [], 0.0
        for back in range(1, self.cover + 1):
            since = surface[row - back + 1 : row + 1]
            if row - back < start or not all(since):
                continue
            read = b"".join(since) + (surface[row + 1][:inside] if inside else b"")
            weight = math.exp(self.source.nll[row - back : row].sum())
            found = [(t, p) for t, p in self.candidates(row - back)[0].items() if self.surfaces[t].startswith(read)]
            longer = [
                (self.surfaces[t][len(read) :], t, len(read), p * weight) for t, p in found if self.surfaces[t] != read
            ]
            covers += longer
            lost += self.lost(row - back, read, len(longer)) * weight
        whole = total + sum(p for *_, p in covers) + lost
        if whole and lost / whole > self.max_unknown:
            covers, lost, whole = [], 0.0, total
        if not whole:
            return [], 0.0, 1.0
        entries = [(text, t, skip, p / whole) for text, t, skip, p in entries + covers]
        return entries, tail / whole, (unknown + lost) / whole

    def look_ahead(self, i, row, stop, inside, entries, unknown):
        """The token read, replaced by itself and each candidate of its next row; (text, probability) of each."""
        last = self.target.doc_offsets[self.target.doc_of_token[i] + 1].item() - 1
        end = self.target.boundaries[i + 1].item() if i < last else NO_BOUNDARY
        tokens, read, done = self.source.tokens, b"", []
        for step in range(1, self.lookahead + 1):
            place, skip = row + step, inside if step == 1 else 0
            if place >= stop or not 0 < tokens.boundaries[place].item() <= end:
                break
            token = tokens.ids[place].item()
            was_read = [e for e in entries if e[1:3] == (token, skip)]
            if not was_read:
                break
            done += [(read + text, p) for text, t, s, p in entries if (t, s) != (token, skip)]
            weight, read = was_read[0][3], read + self.surfaces[token][skip:]
            kept, tail = self.candidates(place)
            entries = [(self.surfaces[t], t, 0, p * weight) for t, p in kept.items()]
            unknown += tail * weight
        return done + [(read + text, p) for text, _, _, p in entries], unknown

    def count(self, i, entries, tail, unknown):
        vocabulary = self.target_tokenizer.vocabulary
        begin = self.target.doc_offsets[self.target.doc_of_token[i]].item()
        before = b"".join(vocabulary.surfaces[t] for t in self.target.ids[begin : i + 1].tolist()) * self.in_context
        kept, left_out = defaultdict(float), 0.0
        for text, p in entries:
            ids = self.target_tokenizer.encode([(before + text).decode()])[0]
            starts = [0, *itertools.accumulate(len(vocabulary.surfaces[t]) for t in ids)]
            if not text:
                kept[END] += p
            elif len(before) in starts:
                kept[ids[starts.index(len(before))]] += p
            else:
                left_out += p
        rest = sum(kept.values()) + tail + unknown
        scale = 1 / rest if left_out and rest else 1.0
        if not kept and not tail:
            return {}, 0.0, 1.0
        return {t: p * scale for t, p in kept.items()}, tail * scale, unknown * scale


def make_case(seed, longest=5, k=None, same=False, merges=5):
    rng = np.random.default_rng(seed)
    language = draw_language(rng, longest=longest)
    tokenizers = [draw_tokenizer(rng, merges=merges) for _ in range(2)]
    tokenizers = [tokenizers[0]] * 2 if same else tokenizers
    source, truth = read_language(language, tokenizers[0], k), read_language(language, tokenizers[1])
    return source, truth, tokenizers


def align(strategy, mapping, source, truth, tokenizers):
    return strategy(source, truth.tokens, make_pair(*tokenizers, mapping)).dist


def entries_of(dist, row):
    start, stop = dist.row_offsets[row : row + 2].tolist()
    return dict(zip(dist.ids[start:stop].tolist(), dist.logprobs[start:stop].exp().tolist(), strict=True))


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_rows_follow_the_definition_by_loops(name, k):
    options, mapping = OPTIONS[name]
    for seed in range(3):
        source, truth, tokenizers = make_case(seed, longest=4, k=k)
        dist = align(ByteBoundary(**options), mapping, source, truth, tokenizers)
        definition = Definition(source, truth.tokens, tokenizers, mapping, **options)
        for row in range(0, dist.num_rows, 2):
            kept, tail, unknown = definition.row(row)
            assert entries_of(dist, row) == pytest.approx(kept, abs=1e-9)
            assert dist.tail_logprob[row].exp().item() == pytest.approx(tail, abs=1e-9)
            assert dist.unknown_logprob[row].exp().item() == pytest.approx(unknown, abs=1e-9)


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_mass_is_conserved(name, k):
    options, mapping = OPTIONS[name]
    dist = align(ByteBoundary(**options), mapping, *make_case(7, k=k))
    mass = (dist.tail_logprob.exp() + dist.unknown_logprob.exp()).index_add(0, dist.row_of_entry, dist.logprobs.exp())
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-9)
    assert dist.present.any()


@pytest.mark.parametrize("name", OPTIONS)
def test_equal_vocabularies_give_the_models_own_rows(name):
    options, mapping = OPTIONS[name]
    source, truth, tokenizers = make_case(3, same=True)
    dist = align(ByteBoundary(**options), mapping, source, truth, tokenizers)
    for row in (truth.tokens.boundaries != NO_BOUNDARY).nonzero().flatten().tolist():
        assert entries_of(dist, row) == pytest.approx(entries_of(truth.dist, row), abs=1e-12)


@pytest.mark.parametrize("k", [None, 2])
def test_a_row_knows_nothing_of_the_text_behind_its_label(k):
    """Rows agree wherever both tokenizers read alike up to the label's end, the source one token further."""
    source, truth, tokenizers = make_case(5, longest=6, k=k)
    dist = align(ByteBoundary(cover=2, lookahead=3, bridge=True), Canonical(), source, truth, tokenizers)
    rows = defaultdict(list)
    for doc in range(truth.tokens.num_docs):
        first, last = truth.tokens.doc_offsets[doc : doc + 2].tolist()
        start, stop = source.tokens.doc_offsets[doc : doc + 2].tolist()
        ends = source.tokens.boundaries[start:stop].tolist()
        for row in range(first, last - 2):
            label_end = truth.tokens.boundaries[row + 1].item()
            read = sum(end != NO_BOUNDARY and end <= label_end for end in ends) + 1
            key = (*truth.tokens.ids[first : row + 2].tolist(), -1, *source.tokens.ids[start : start + read].tolist())
            rows[key].append(row)
    shared = [group for group in rows.values() if len(group) > 1]
    assert len(shared) > 20
    for group in shared:
        for other in group[1:]:
            assert entries_of(dist, other) == pytest.approx(entries_of(dist, group[0]), abs=1e-12)


def test_a_bridge_fills_rows_inside_source_tokens():
    source, truth, tokenizers = make_case(0)
    without, bridged = (align(ByteBoundary(bridge=b), Canonical(), source, truth, tokenizers) for b in (False, True))
    proven = truth.tokens.boundaries != NO_BOUNDARY
    assert not without.present[proven].all()
    assert bridged.present[proven].float().mean() > without.present[proven].float().mean()
    for row in without.present.nonzero().flatten().tolist():
        assert entries_of(bridged, row) == entries_of(without, row)


@pytest.mark.parametrize("source_kind", ["exact_byte_level", "exact_metaspace"])
@pytest.mark.parametrize("target_kind", ["exact_byte_level_prefix", "exact_metaspace_bare", "exact_prepend"])
def test_a_source_that_is_sure_of_the_text_teaches_the_targets_own_tokens(tiny, source_kind, target_kind):
    texts = ["the dog sleeps,  the fox\n\n  jumps. don't 12 345!", "def add(a):\n        return a  # sum", "fox " * 30]
    (source, _), (target, _) = (tiny[kind].read(texts) for kind in (source_kind, target_kind))
    vocabularies = tiny[source_kind].vocabulary, tiny[target_kind].vocabulary
    encode = tiny[target_kind].encode_middle
    pair = Pair(*vocabularies, Canonical()(*vocabularies, encode), encode)
    rows = len(source.ids)
    sure = TokenDist(
        torch.arange(rows + 1), source.ids.roll(-1), *(torch.full((rows,), v) for v in (0.0, -INF, -INF)),
        vocabularies[0].size,
    )  # fmt: skip
    dist = ByteBoundary(cover=2, lookahead=8)(Scored(source, sure, torch.zeros(rows)), target, pair).dist
    checked = dist.present.nonzero().flatten().tolist()
    assert len(checked) > len(target.ids) / 3
    for row in checked:
        assert entries_of(dist, row) == {target.ids[row + 1].item(): pytest.approx(1)}


def test_candidates_that_end_inside_a_character_fall_back_to_the_longest_token():
    source = Vocabulary((b"", b"", "é".encode()[:1], b"a"), {"bos": 0, "eos": 1}, False, False)
    target = Vocabulary((b"", b"", b"\xc3", b"\xa9", "é".encode(), b"a", b"aa"), {"bos": 0, "eos": 1}, False, False)
    pair = Pair(
        source, target, VocabMap(torch.tensor([-1, 1, 2, 5]), 7, in_context=True), lambda texts: [[6] for _ in texts]
    )
    tokens = Tokens(torch.tensor([0, 3, 2]), torch.tensor([0, 1, NO_BOUNDARY]), torch.tensor([0, 3]))
    dist = TokenDist(
        torch.tensor([0, 1, 3, 3]), torch.tensor([3, 2, 3]), torch.tensor([0.0, math.log(0.25), math.log(0.75)]),
        torch.full((3,), -INF), torch.tensor([-INF, -INF, 0.0]), 4,
    )  # fmt: skip
    target_tokens = Tokens(torch.tensor([0, 5, 2]), tokens.boundaries, tokens.doc_offsets)
    found = ByteBoundary()(Scored(tokens, dist, torch.tensor([0.0, 1.0, torch.nan])), target_tokens, pair).dist
    assert entries_of(found, 1) == {2: pytest.approx(1)}  # "a" after "a" would be the token "aa": left out


def test_cover_without_canonical_warns():
    source, truth, tokenizers = make_case(0, longest=3)
    with pytest.warns(UserWarning, match="canonical"):
        align(ByteBoundary(cover=1), BytePiece(), source, truth, tokenizers)


def test_a_pair_without_encode_is_refused_where_texts_must_be_cut():
    source, truth, tokenizers = make_case(0, longest=3)
    pair = make_pair(*tokenizers, Canonical())
    bare = Pair(pair.source, pair.target, pair.vocab_map)
    with pytest.raises(ValueError, match="the pair has none"):
        ByteBoundary()(source, truth.tokens, bare)


@pytest.mark.parametrize("options", [{"cover": 3}, {"lookahead": -1}, {"max_unknown": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        ByteBoundary(**options)


def test_options_survive_json():
    strategy = ByteBoundary(cover=2, lookahead=2, bridge=True, max_unknown=0.25)
    adapter = TypeAdapter(AlignmentStrategy)
    assert adapter.validate_json(adapter.dump_json(strategy)) == strategy


def test_an_empty_shard_aligns_with_every_option():
    empty = Tokens(*(torch.zeros(n, dtype=torch.int64) for n in (0, 0, 1)))
    _, _, tokenizers = make_case(0, longest=3)
    size = tokenizers[0].vocabulary.size
    dist = TokenDist(torch.tensor([0]), torch.zeros(0, dtype=torch.int64), *torch.zeros(3, 0), size)
    strategy = ByteBoundary(cover=2, lookahead=2, bridge=True)
    aligned = strategy(Scored(empty, dist, torch.zeros(0)), empty, make_pair(*tokenizers, Canonical()))
    assert aligned.dist.num_rows == 0
