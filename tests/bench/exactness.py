"""How wrong is the teacher that one tokenizer's model gives to another's? Measured where the truth is known.

A Markov chain with an end symbol gives a distribution over strings, all of them enumerated up to a length. Source and
target cut them with random BPE vocabularies, and both models are exact: their rows follow from the strings by counting.
What an alignment makes of the source's rows is compared with the target's true rows by total variation.

    python -m tests.bench.exactness [--draws 40] [--k 0 3] [--json FILE]
"""

import argparse
import itertools
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fusion_core.alignment import AlignmentStrategy, ByteBoundary, ExactDTW, MinEditDTW, Pair
from fusion_core.min_edit import MinEdit
from fusion_core.types import NO_BOUNDARY, Aligned, Scored, TokenDist, Tokens
from fusion_core.vocab_mapping import BytePiece, Canonical, ExactMatch, VocabMapping
from fusion_core.vocabulary import Vocabulary

BEGIN, END = 0, 1


@dataclass(frozen=True)
class Language:
    """Strings and their probabilities, which sum to one."""

    strings: Sequence[str]
    probs: Sequence[float]


def draw_language(rng: np.random.Generator, letters: str = "abc", longest: int = 7, memory: int = 1) -> Language:
    """All strings of a random Markov chain over `letters` that end within `longest` letters, given that they do.

    memory: how many letters back the chain remembers.
    """
    size = len(letters)
    states = (size + 1) ** memory  # the last letters as the digits of a number, the highest digit before the first one
    step = rng.dirichlet(np.full(size, 0.7), states) * (1 - rng.uniform(0.1, 0.25, (states, 1)))
    strings, probs = [], []
    for length in range(1, longest + 1):
        for places in itertools.product(range(size), repeat=length):
            state, path = states - 1, 1.0
            for place in places:
                path *= step[state, place]
                state = (state * (size + 1) + place) % states
            strings.append("".join(letters[p] for p in places))
            probs.append(float(path * (1 - step[state].sum())))
    total = sum(probs)
    return Language(strings, [p / total for p in probs])


@dataclass(frozen=True)
class Tokenizer:
    """BPE by its definition: of all neighbours the earliest merge is done, leftmost first, until none is left."""

    letters: str
    merges: tuple[tuple[str, str], ...]

    @cached_property
    def pieces(self) -> list[str]:
        return list(dict.fromkeys([*self.letters, *(a + b for a, b in self.merges)]))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        surfaces, names = (b"", b"", *(p.encode() for p in self.pieces)), ("<s>", "</s>", *self.pieces)
        return Vocabulary(surfaces, {"bos": BEGIN, "eos": END}, False, False, names)

    def cut(self, text: str) -> list[str]:
        parts, rank = list(text), {pair: r for r, pair in enumerate(self.merges)}
        while True:
            places = [(rank[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in rank]
            if not places:
                return parts
            _, i = min(places)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self.pieces.index(part) + 2 for part in self.cut(text)] for text in texts]


def draw_tokenizer(rng: np.random.Generator, letters: str = "abc", merges: int = 5, longest: int = 4) -> Tokenizer:
    """A tokenizer with random merges of pieces it already has."""
    pieces, chosen = list(letters), []
    while len(chosen) < merges:
        left, right = (pieces[i] for i in rng.integers(0, len(pieces), 2))
        if len(left + right) <= longest and left + right not in pieces:
            chosen.append((left, right))
            pieces.append(left + right)
    return Tokenizer(letters, tuple(chosen))


def read_language(language: Language, tokenizer: Tokenizer, k: int | None = None) -> Scored:
    """The shard of all strings as the exact model of them reads it; with `k`, rows keep the k likeliest tokens."""
    documents = [[BEGIN, *ids, END] for ids in tokenizer.encode(language.strings)]
    follow: dict[tuple[int, ...], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for ids, prob in zip(documents, language.probs, strict=True):
        for length in range(1, len(ids)):
            follow[tuple(ids[:length])][ids[length]] += prob
    widths, ids_kept, logprobs, tails, nll, boundaries = [], [], [], [], [], []
    surfaces = tokenizer.vocabulary.surfaces
    for ids in documents:
        end = 0
        for length, token in enumerate(ids, 1):
            end += len(surfaces[token] or b"")
            boundaries.append(NO_BOUNDARY if token == END else end)
            row = follow.get(tuple(ids[:length]), {END: 1.0})
            total = sum(row.values())
            ranked = sorted(row, key=lambda t: -row[t])
            kept, rest = ranked[:k], ranked[k:] if k else []
            widths.append(len(kept))
            ids_kept += kept
            logprobs += [np.log(row[t] / total) for t in kept]
            tails.append(np.log(sum(row[t] for t in rest) / total) if rest else -np.inf)
            nll.append(-np.log(row[ids[length]] / total) if length < len(ids) else np.nan)
    offsets = torch.tensor([0, *map(len, documents)]).cumsum(0)
    tokens = Tokens(torch.tensor(list(itertools.chain(*documents))), torch.tensor(boundaries), offsets)
    dist = TokenDist(
        row_offsets=torch.tensor([0, *widths]).cumsum(0),
        ids=torch.tensor(ids_kept),
        logprobs=torch.tensor(logprobs, dtype=torch.float64),
        tail_logprob=torch.tensor(tails, dtype=torch.float64),
        unknown_logprob=torch.full((len(tails),), -torch.inf, dtype=torch.float64),
        vocab_size=tokenizer.vocabulary.size,
    )
    return Scored(tokens, dist, torch.tensor(nll))


def make_pair(source: Tokenizer, target: Tokenizer, mapping: VocabMapping) -> Pair:
    vocab_map = mapping(source.vocabulary, target.vocabulary, target.encode)
    return Pair(source.vocabulary, target.vocabulary, vocab_map, target.encode)


@dataclass(frozen=True)
class Distance:
    """Means over rows, weighed by the probability of their strings.

    error: total variation of what is known. bias: the same after averaging each row over all that may follow it (a row
    may look at its label, so that it is right on average only). kept, unknown: mass. covered: share of rows present.
    """

    error: float
    bias: float
    kept: float
    unknown: float
    covered: float


def measure(language: Language, truth: Scored, aligned: Aligned) -> Distance:
    """How far aligned rows are from the target's true ones, over the rows that are present and not the end's.

    Raises:
        AssertionError: kept, tail and unknown mass of some row don't sum to one.
    """
    doc = truth.tokens.doc_of_token
    weight = torch.tensor(language.probs, dtype=torch.float64)[doc]
    counted = truth.tokens.boundaries != NO_BOUNDARY
    kept = dense(aligned.dist).sum(1)
    mass = kept + aligned.dist.tail_logprob.exp() + aligned.dist.unknown_logprob.exp()
    wrong = (mass - 1).abs().max().item()
    assert wrong < 1e-9, f"expected rows of mass 1, found one that is off by {wrong:.1e}"
    present = counted & aligned.dist.present
    true_rows, found = dense(truth.dist), dense(aligned.dist)
    known = (1 - aligned.dist.unknown_logprob.exp()).clamp(min=1e-300).unsqueeze(1)
    found = found / known
    tail = (aligned.dist.tail_logprob.exp() / known.squeeze(1)).where(present, 0.0)
    outside = (true_rows * (found == 0)).sum(1)
    error = 0.5 * (((found - true_rows).abs() * (found > 0)).sum(1) + (outside - tail).abs())

    def mean(values: torch.Tensor) -> float:
        return float((values * weight)[present].sum() / weight[present].sum())

    return Distance(
        error=mean(error),
        bias=_bias(truth, found, true_rows, weight, present),
        kept=mean(kept),
        unknown=mean(aligned.dist.unknown_logprob.exp()),
        covered=float(weight[present].sum() / weight[counted].sum()),
    )


def _bias(
    truth: Scored, found: torch.Tensor, true_rows: torch.Tensor, weight: torch.Tensor, present: torch.Tensor
) -> float:
    """Total variation after averaging the rows of equal prefixes; a missing tail counts as error."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    starts = truth.tokens.doc_offsets.tolist()
    ids = truth.tokens.ids.tolist()
    doc = truth.tokens.doc_of_token.tolist()
    for row in present.nonzero().flatten().tolist():
        groups[tuple(ids[starts[doc[row]] : row + 1])].append(row)
    number = torch.zeros(len(ids), dtype=torch.int64)
    for n, rows in enumerate(groups.values()):
        number[rows] = n
    shape = (len(groups), found.shape[1])
    sums = torch.zeros(shape, dtype=torch.float64).index_add(0, number[present], (found * weight[:, None])[present])
    total = torch.zeros(len(groups), dtype=torch.float64).index_add(0, number[present], weight[present])
    expected = torch.zeros(shape, dtype=torch.float64)
    expected[number[present]] = true_rows[present]
    error = 0.5 * (sums / total[:, None] - expected).abs().sum(1)
    return float((error * total).sum() / total.sum())


def dense(dist: TokenDist) -> torch.Tensor:
    """Probabilities of the kept ids [rows, vocab]."""
    table = torch.zeros(dist.num_rows, dist.vocab_size, dtype=torch.float64)
    table[dist.row_of_entry, dist.ids] = dist.logprobs.double().exp()
    return table


METHODS: dict[str, tuple[VocabMapping, AlignmentStrategy]] = {
    "original (min_edit, its own rules)": (MinEdit(reference=True), MinEditDTW(reference=True)),
    "min_edit_dtw + min_edit": (MinEdit(), MinEditDTW()),
    "exact_dtw + exact": (ExactMatch(), ExactDTW()),
    "plain (first piece)": (BytePiece(), ByteBoundary()),
    "canonical": (Canonical(), ByteBoundary()),
    "cover 2": (BytePiece(), ByteBoundary(cover=2)),
    "canonical + cover 1": (Canonical(), ByteBoundary(cover=1)),
    "canonical + cover 2": (Canonical(), ByteBoundary(cover=2)),
    "canonical + cover 2 + lookahead 1": (Canonical(), ByteBoundary(cover=2, lookahead=1)),
    "canonical + cover 2 + lookahead 2": (Canonical(), ByteBoundary(cover=2, lookahead=2)),
    "canonical + cover 2 + lookahead 3": (Canonical(), ByteBoundary(cover=2, lookahead=3)),
    "canonical + cover 2 + lookahead 2 + bridge": (Canonical(), ByteBoundary(cover=2, lookahead=2, bridge=True)),
}
FIELDS = tuple(field.name for field in fields(Distance))


def align(
    method: tuple[VocabMapping, AlignmentStrategy], source: Scored, truth: Scored, cut_by: Sequence[Tokenizer]
) -> Aligned:
    """The source's rows brought onto the target's; `cut_by` are the source's and the target's tokenizer."""
    mapping, strategy = method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return strategy(source, truth.tokens, make_pair(*cut_by, mapping))


def run(draws: int, longest: int = 7, merges: int = 5, k: int | None = None) -> dict[str, dict[str, float]]:
    """Each method's distances over draws of language and tokenizers: means, and standard errors as `..._se`."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        language = draw_language(rng, longest=longest)
        cut_by = [draw_tokenizer(rng, merges=merges) for _ in range(2)]
        source, truth = read_language(language, cut_by[0], k), read_language(language, cut_by[1])
        for name, method in METHODS.items():
            found[name].append(list(astuple(measure(language, truth, align(method, source, truth, cut_by)))))
    return {name: summarize_draws(FIELDS, values) for name, values in found.items()}


def summarize_draws(names: Sequence[str], values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean of each column over the draws, and its standard error under the name with `_se` behind it."""
    table = np.array(values)
    means, errors = table.mean(0), table.std(0, ddof=min(1, len(table) - 1)) / np.sqrt(len(table))
    named = zip(names, means.tolist(), errors.tolist(), strict=True)
    return {key: value for name, mean, error in named for key, value in ((name, mean), (f"{name}_se", error))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--longest", type=int, default=7, help="letters of the longest string")
    parser.add_argument("--k", type=int, nargs="+", default=[0, 3], help="candidates kept per source row; 0 for all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {}
    for k in args.k:
        title = f"{f'top {k}' if k else 'full'} rows, {args.draws} draws"
        results[title] = run(args.draws, args.longest, k=k or None)
        print(f"{title:43} {'error':>14} {'bias':>14}" + "".join(f"{name:>8}" for name in FIELDS[2:]))
        for name, row in results[title].items():
            sure = (f"{row[field]:7.3f} ±{row[f'{field}_se']:5.3f}" for field in FIELDS[:2])
            print(f"{name:43} " + " ".join(sure) + "".join(f"{row[field]:8.3f}" for field in FIELDS[2:]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
