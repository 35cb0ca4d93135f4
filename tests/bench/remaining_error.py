"""What is left of a teacher's error after covers and looking ahead, and what could still be done about it?

The setting is `exactness`'s. Its strings are counted directly, so every way in which the source may stand at a boundary
can be weighed, the ones that its rows don't show included. Measured, in total variation from the target's true row:

- ways: the source's other ways to stand at the boundary. What would the row be if all that follows the path and its
  covers were known? What is left is the fault of ways that no cover finds: tokens that differ before the last one.
  `bound` is what the rows that were computed say at most about their share of the row, `share` what it is.
- point: each candidate counts for one target token, as `Canonical` has it, though what follows may make it another.
  `open` is the mass of candidates that don't settle it.
- set: each candidate counts for the set of all target tokens that are possible with it. Sets that overlap are joined,
  and the error is that of their masses; `resolution` is how much of the row's entropy these masses still tell.
- resolved: each candidate's mass is divided among its set as the student itself expects (`student`: its own error).
  `fixed point`: the same repeated until nothing changes, which is where a loss -mass * log(student's mass on the set)
  leads. Two students: one that knows another language only, one that is half way to the truth.

- pair counts: each candidate's mass divided among its set as `tally_pairs` counted the target's tokens in its place
  over all texts: a soft `Statistics`, which needs no student.

Sets are "true" (what the strings show); "by prefix": the candidate's own target token, and all that begin with the
candidate and go on; or "by both": of these only the ones that the source, too, would begin to read with the candidate,
and none for a candidate that `Canonical` leaves out. A product could know the last two.

Found (12 draws; a language that remembers one letter, and three): with covers of two tokens the ways missed weigh
0.004 and 0.003 of a row, though what is computed can't bound them below 0.17 and 0.15. So what is left is unread
candidates: point 0.037 and 0.057 after looking ahead once. Sets by both leave 0.006 and 0.015, telling 0.90 and 0.87
of the entropy; sets by prefix alone are worse than points. Pair counts within sets by both: 0.015 and 0.041, and
hardly more without looking ahead (0.018 and 0.044). A student resolves them to 0.017 and 0.029 half way to the truth,
to 0.035 and 0.054 if it is bad. The fixed point is worse than one division: overlapping sets are fulfilled by what
they share.

    python -m tests.bench.remaining_error [--draws 12] [--memory 1] [--json FILE]
"""

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tests.bench.exactness import Language, Tokenizer, draw_language, draw_tokenizer, summarize_draws

Tokens = tuple[str, ...]
Row = dict[str, float]
END = ""
"""The end token, as the text of it."""


@dataclass(frozen=True)
class Reading:
    """All strings as one tokenizer cuts them, each ended."""

    cuts: Sequence[Tokens]

    @cached_property
    def below(self) -> Mapping[Tokens, set[int]]:
        """The strings that begin with each run of tokens."""
        found: dict[Tokens, set[int]] = defaultdict(set)
        for string, tokens in enumerate(self.cuts):
            for length in range(len(tokens) + 1):
                found[tokens[:length]].add(string)
        return found

    @cached_property
    def after(self) -> Mapping[Tokens, set[str]]:
        """The tokens that may follow each run of tokens."""
        found: dict[Tokens, set[str]] = defaultdict(set)
        for tokens in self.cuts:
            for length in range(len(tokens)):
                found[tokens[:length]].add(tokens[length])
        return found


@dataclass(frozen=True)
class World:
    """One draw: a language, another one that a bad student knows, and how source and target read their strings."""

    probs: Sequence[float]
    other_probs: Sequence[float]
    source: Reading
    target: Reading
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer

    @cached_property
    def pair_counts(self) -> Mapping[str, Row]:
        """For each source token, the target's tokens that begin where it begins, over all texts."""
        counts: dict[str, Row] = defaultdict(lambda: defaultdict(float))
        for source, target, prob in zip(self.source.cuts, self.target.cuts, self.probs, strict=True):
            begun = dict(zip(itertools.accumulate(map(len, source), initial=0), source, strict=False))
            for start, token in zip(itertools.accumulate(map(len, target), initial=0), target, strict=False):
                if start in begun:
                    counts[begun[start]][token] += prob
        return counts

    def mass(self, strings: Iterable[int]) -> float:
        return sum(self.probs[s] for s in strings)

    def next_tokens(self, strings: Iterable[int], place: int, probs: Sequence[float] | None = None) -> Row:
        """What the target reads at `place` in the given strings, as a distribution."""
        row: Row = defaultdict(float)
        for s in strings:
            row[self.target.cuts[s][place]] += (probs or self.probs)[s]
        return normalize(row)


def draw_world(seed: int, longest: int, memory: int = 1) -> World:
    rng = np.random.default_rng(seed)
    language = draw_language(rng, longest=longest, memory=memory)
    source, target = (draw_tokenizer(rng) for _ in range(2))
    other: Language = draw_language(rng, longest=longest, memory=memory)
    readings = [Reading([(*t.cut(string), END) for string in language.strings]) for t in (source, target)]
    return World(language.probs, other.probs, *readings, source, target)


def find_ways(world: World, path: Tokens, cover: int) -> dict[Tokens, str]:
    """How the source may go on where it has read `path`: runs of tokens, and the text of each behind the boundary."""
    ways = {(*path, token): token for token in world.source.after[path]}
    for back in range(1, min(cover, len(path)) + 1):
        start, read = path[:-back], "".join(path[-back:])
        longer = (t for t in world.source.after[start] if t.startswith(read) and len(t) > len(read))
        ways |= {(*start, token): token[len(read) :] for token in longer}
    return ways


def bound_other_ways(world: World, path: Tokens) -> float:
    """The most that ways which part from the path, but not by a cover, may weigh: all that fit but were not read."""
    total = 0.0
    for back in range(1, len(path) + 1):
        start, read = path[:-back], "".join(path[-back:])
        fits = (t for t in world.source.after[start] if t and read.startswith(t) and t != path[-back])
        total += sum(world.mass(world.source.below[(*start, t)]) for t in fits)
    return total


def look_ahead(world: World, ways: dict[Tokens, str], read: Tokens, steps: int, label: str) -> dict[Tokens, str]:
    """The same with the way that was read followed by each of its next tokens, as long as it leaves the label open."""
    for way in [read[:length] for length in range(len(read))]:
        if way in ways and steps and len(ways[way]) <= len(label) and ways[way]:
            text = ways.pop(way)
            ways |= {(*way, token): text + token for token in world.source.after[way]}
            steps -= 1
    return ways


def next_by_canonical(tokenizer: Tokenizer, before: Tokens, text: str) -> str | None:
    """The target's token behind `before` if the text goes on with `text`; None if `before` would not survive."""
    tokens = (*tokenizer.cut("".join(before) + text), END)
    return tokens[len(before)] if tokens[: len(before)] == before else None


def normalize(row: Mapping[str, float]) -> Row:
    total = sum(row.values())
    return {token: mass / total for token, mass in row.items()} if total else {}


def variation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return 0.5 * sum(abs(a.get(token, 0.0) - b.get(token, 0.0)) for token in {*a, *b})


def entropy(masses: Iterable[float]) -> float:
    return -sum(mass * math.log(mass) for mass in masses if mass > 0)


def join_overlapping(sets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """The finest partition that cuts none of the sets."""
    blocks: list[frozenset[str]] = []
    for tokens in sets:
        joined = tokens.union(*(block for block in blocks if block & tokens))
        blocks = [block for block in blocks if not block & tokens] + [joined]
    return blocks


def resolve(sets: Mapping[frozenset[str], float], student: Mapping[str, float]) -> Row:
    """Each set's mass divided among its tokens as the student expects them; evenly where it expects none."""
    row: Row = defaultdict(float)
    for tokens, mass in sets.items():
        own = sum(student.get(token, 0.0) for token in tokens)
        for token in tokens:
            row[token] += mass * (student.get(token, 0.0) / own if own else 1 / len(tokens))
    return row


def judge_sets(sets: Mapping[frozenset[str], float], truth: Row, students: Mapping[str, Row]) -> dict[str, float]:
    blocks = join_overlapping([*sets, *(frozenset([token]) for token in truth)])
    true_masses = {i: sum(truth.get(t, 0.0) for t in block) for i, block in enumerate(blocks)}
    masses = {i: sum(m for tokens, m in sets.items() if tokens <= block) for i, block in enumerate(blocks)}
    found = {"error": 0.5 * sum(abs(masses[i] - true_masses[i]) for i in masses)}
    found["resolution"] = entropy(true_masses.values()) / (entropy(truth.values()) or 1.0)
    for name, student in students.items():
        found[f"resolved, {name}"] = variation(resolve(sets, student), truth)
        for _ in range(30):
            student = resolve(sets, student)
        found[f"fixed point, {name}"] = variation(student, truth)
    return found


def judge_row(world: World, before: Tokens, path: Tokens, read: Tokens, label: str) -> dict[str, float]:
    """Everything measured at one target row: target and source have read `before` and `path`, `read` is to come."""
    here, place = world.target.below[before], len(before)
    truth = world.next_tokens(here, place)
    found: dict[str, float] = {}
    for cover in (0, 1, 2, len(path)):
        ways = find_ways(world, path, cover)
        seen = set().union(*(world.source.below[way] for way in ways)) & here
        found[f"ways: cover {'any' if cover > 2 else cover}"] = variation(world.next_tokens(seen, place), truth)
    found["ways: cover any"] = variation(world.next_tokens(seen, place), truth)
    found["ways: share of others"] = 1 - world.mass(seen) / world.mass(here)
    limit = bound_other_ways(world, path)
    found["ways: bound of others"] = limit / (limit + world.mass(set().union(*(world.source.below[w] for w in ways))))

    students = {"bad student": world.next_tokens(here, place, world.other_probs)}
    middle = {t: 0.5 * students["bad student"].get(t, 0.0) + 0.5 * p for t, p in truth.items()}
    students["half student"] = middle
    found |= {f"{name}'s own error": variation(student, truth) for name, student in students.items()}
    for steps in (0, 1):
        ways = look_ahead(world, find_ways(world, path, 2), (*path, *read), steps, label)
        found |= judge_ways(world, ways, before, truth, students, f"lookahead {steps}")
    return found


@dataclass(frozen=True)
class Candidate:
    """What one way says of the target's next token: its mass, the one token it counts for, and sets it may be of."""

    mass: float
    token: str
    own: str | None
    sets: Mapping[str, frozenset[str]]


def read_candidate(world: World, way: Tokens, text: str, before: Tokens) -> Candidate:
    below, read = world.source.below[way], "".join(before)
    own = next_by_canonical(world.target_tokenizer, before, text)
    kept = frozenset() if own is None else frozenset([own])
    longer = {p for p in world.target_tokenizer.pieces if text and len(p) > len(text) and p.startswith(text)}
    by_prefix = kept if way[-1] == END else kept | longer
    agreed = {p for p in longer if tuple(world.source_tokenizer.cut(read + p)[: len(way)]) == way}
    sets = {
        "true sets": frozenset(world.next_tokens(below & world.target.below[before], len(before))),
        "sets by prefix": by_prefix,
        "sets by both": kept if way[-1] == END or not kept else kept | agreed,
    }
    return Candidate(world.mass(below), way[-1] if way[-1] == text else "", own, sets)


def judge_ways(
    world: World, ways: Mapping[Tokens, str], before: Tokens, truth: Row, students: Mapping[str, Row], title: str
) -> dict[str, float]:
    candidates = [read_candidate(world, way, text, before) for way, text in ways.items()]
    point: Row = defaultdict(float)
    for c in candidates:
        if c.own is not None:
            point[c.own] += c.mass
    found = {f"{title}: point": variation(normalize(point), truth)}
    for kind in candidates[0].sets:
        sets: dict[frozenset[str], float] = defaultdict(float)
        counted: Row = defaultdict(float)
        for c in candidates:
            tokens = c.sets[kind]
            if not tokens:
                continue
            sets[tokens] += c.mass
            usual = world.pair_counts[c.token] if c.token else {c.own or "": 1.0}
            for token, mass in resolve({tokens: c.mass}, usual).items():
                counted[token] += mass
        scaled = {tokens: mass / sum(sets.values()) for tokens, mass in sets.items()}
        found[f"{title}, {kind}: open"] = sum(mass for tokens, mass in scaled.items() if len(tokens) > 1)
        found[f"{title}, {kind}: resolved, pair counts"] = variation(normalize(counted), truth)
        found |= {f"{title}, {kind}: {k}": v for k, v in judge_sets(scaled, truth, students).items()}
    return found


def measure_world(world: World) -> dict[str, float]:
    """Means over all rows at common boundaries, weighed by the probability of their strings."""
    sums: dict[str, float] = defaultdict(float)
    total = 0.0
    known: dict[tuple[Tokens, ...], dict[str, float]] = {}
    for string, prob in enumerate(world.probs):
        source, target = world.source.cuts[string], world.target.cuts[string]
        ends = {end: place for place, end in enumerate(itertools.accumulate(map(len, source[:-1]), initial=0))}
        for place, end in enumerate(itertools.accumulate(map(len, target[:-1]), initial=0)):
            if end not in ends:
                continue
            path, read = source[: ends[end]], source[ends[end] : ends[end] + 3]
            key = (target[: place + 1], path, read)
            if key not in known:
                known[key] = judge_row(world, target[:place], path, read, target[place])
            for name, value in known[key].items():
                sums[name] += prob * value
            total += prob
    return {name: value / total for name, value in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--longest", type=int, default=5, help="letters of the longest string")
    parser.add_argument("--memory", type=int, default=1, help="letters that the language remembers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = [measure_world(draw_world(seed, args.longest, args.memory)) for seed in range(args.draws)]
    means = summarize_draws(list(found[0]), [list(row.values()) for row in found])
    for name in found[0]:
        print(f"{name:60} {means[name]:7.3f} ±{means[f'{name}_se']:5.3f}")
    if args.json:
        args.json.write_text(json.dumps(means, indent=1) + "\n")


if __name__ == "__main__":
    main()
