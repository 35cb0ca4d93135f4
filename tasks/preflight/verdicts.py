"""Whether to fuse a source, and why: what the findings of an inspection come to."""

from collections.abc import Mapping, Sequence

from tasks.preflight.findings import PairFindings, ScoreFindings, Verdict
from tasks.preflight.licences import LicenceFinding

FEW_ROWS, TOO_FEW_ROWS = 0.75, 0.4
"""Share of the target's rows at common boundaries under which a source gets a warning, or is left out.

Over the 20 pairs of five public vocabularies (GPT-2, MPT, Qwen2, Llama-2, OpenLLaMA v1) the share is 0.58 to 1.00 on
prose, code, worked mathematics and Japanese in equal parts, and over 0.85 on prose alone.
"""
SMALL_KIND = 0.05
"""Kinds of text with a smaller share of the rows are too few to warn about."""
MUCH_TRUNCATED = 0.1
"""Bits per byte that truncation may cost before it is worth a warning: what a worse source may cost, too."""
FAR_BEHIND = 1.5
"""A source that pays so many times the target's bits per byte in every domain has nothing to teach it."""


def judge(
    target: str, pairs: Mapping[str, PairFindings], scores: ScoreFindings | None, licences: Sequence[LicenceFinding]
) -> dict[str, Verdict]:
    """A verdict per source, with at least one reason each."""
    return {name: _judge_source(name, target, pair, scores, licences) for name, pair in pairs.items()}


def _judge_source(
    name: str,
    target: str,
    pair: PairFindings,
    scores: ScoreFindings | None,
    licences: Sequence[LicenceFinding],
) -> Verdict:
    against, doubts = _from_rows(pair)
    for stop, doubt in (_from_scores(name, target, scores), _from_licences(name, licences)):
        against, doubts = against + stop, doubts + doubt
    if against:
        return Verdict(choice="leave out", reasons=tuple(against + doubts))
    if doubts:
        return Verdict(choice="fuse with a warning", reasons=tuple(doubts))
    met = f"{pair.rows.common_share:.0%} of the target's rows stand at common boundaries"
    wins = _domains_won(name, target, scores)
    return Verdict(choice="fuse", reasons=(f"{met}; better than the target on {', '.join(wins)}" if wins else met,))


def _from_rows(pair: PairFindings) -> tuple[list[str], list[str]]:
    """Reasons against, and doubts."""
    rows = pair.rows
    if rows.common_share < TOO_FEW_ROWS:
        return [f"only {rows.common_share:.0%} of the target's rows stand at common boundaries"], []
    doubts = []
    if rows.common_share < FEW_ROWS:
        doubts.append(f"{rows.common_share:.0%} of the target's rows stand at common boundaries")
    for kind, found in pair.kinds.items():
        if found.total >= SMALL_KIND * rows.total and found.common_share < FEW_ROWS <= rows.common_share:
            inside = found.bridged / found.total
            doubts.append(
                f"{kind}: {found.common_share:.0%} of rows at common boundaries ({inside:.0%} inside a token)"
            )
    missing = [role for role in ("eos",) if role in pair.target.roles and role not in pair.source.roles]
    if missing:
        doubts.append("it has no end token, so it teaches the target nothing about where texts end")
    if pair.source.padded_rows is not None and pair.source.padded_rows < 0:
        return [f"its embedding has {-pair.source.padded_rows} rows fewer than its tokenizer has ids"], doubts
    return [], doubts


def _from_scores(name: str, target: str, scores: ScoreFindings | None) -> tuple[list[str], list[str]]:
    if scores is None or name not in scores.models:
        return [], []
    own, doubts = scores.models[name], []
    if own.truncation_bits is not None and own.truncation_bits > MUCH_TRUNCATED:
        doubts.append(
            f"what is kept holds {own.kept:.0%} of the mass, and learning no more than that costs up to "
            f"{own.truncation_bits:.2f} bits per byte; keep more per row, or sample"
        )
    if target not in scores.models:
        return [], doubts
    ours = scores.models[target].bits_per_byte
    ratios = {domain: own.bits_per_byte[domain] / bits for domain, bits in ours.items() if bits > 0}
    if ratios and min(ratios.values()) > FAR_BEHIND:
        return [
            f"in no domain does it come near the target (at best {min(ratios.values()):.1f} times its bits)"
        ], doubts
    if ratios and not _domains_won(name, target, scores):
        doubts.append(f"it never wins: in no domain fewer bits per byte than the target ({_best(ratios)})")
    return [], doubts


def _from_licences(name: str, licences: Sequence[LicenceFinding]) -> tuple[list[str], list[str]]:
    return [], [f"licence: {found.reason}" for found in licences if found.subject == name]


def _domains_won(name: str, target: str, scores: ScoreFindings | None) -> list[str]:
    if scores is None or name not in scores.models or target not in scores.models:
        return []
    own, ours = scores.models[name].bits_per_byte, scores.models[target].bits_per_byte
    return [domain for domain, bits in ours.items() if own[domain] < bits]


def _best(ratios: Mapping[str, float]) -> str:
    domain = min(ratios, key=lambda name: ratios[name])
    return f"at best {ratios[domain] - 1:+.0%}, on {domain}"
