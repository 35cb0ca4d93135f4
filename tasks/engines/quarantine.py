"""Documents that a model can't read: found by themselves, listed by id, and refused when they are too many."""

from collections.abc import Callable, Sequence

from fusion_core.types import Tokens
from tasks.corpora.documents import Document
from tasks.engines import Problem, fitting_bytes, without_boundaries

Encode = Callable[[Sequence[str], Sequence[bool]], Tokens]
"""Tokens of texts, given which of them end their document: `encode_documents` of a tokenizer."""


def encode_readable(
    encode: Encode, pieces: Sequence[Document], window: int | None
) -> tuple[Tokens, dict[int, Problem]]:
    """The tokens of pieces, as `encode` gives them, and what is wrong with some of them, by number.

    A piece that the tokenizer fails on, or that has more tokens than the model's window, is read as if it were empty:
    its begin token alone, at no boundary, so that nothing is learnt from it.
    """
    texts = [piece.text for piece in pieces]
    problems: dict[int, Problem] = {}

    def encode_rest() -> Tokens:
        read = [text if number not in problems else "" for number, text in enumerate(texts)]
        ends = [piece.final and number not in problems for number, piece in enumerate(pieces)]
        return encode(read, ends)

    try:
        tokens = encode_rest()
    except Exception:  # what a tokenizer raises depends on its kind
        problems |= _untokenisable(encode, texts)
        if not problems:
            raise
        tokens = encode_rest()
    too_long = _too_long(tokens, texts, window)
    if too_long:
        problems |= too_long
        tokens = encode_rest()
    return without_boundaries(tokens, problems), problems


def check_share(what: str, pieces: Sequence[Document], problems: dict[int, Problem], share: float) -> None:
    """Raises `ValueError` when more than this share of the pieces has a problem, naming the first and its way out."""
    if len(problems) <= share * len(pieces):
        return
    first = min(problems)
    listed = "; ".join(f"{pieces[number].id}: {problems[number].text}" for number in sorted(problems)[:3])
    raise ValueError(
        f"{what}: expected at most {share:.0%} documents that can't be used, found {len(problems)} of {len(pieces)} "
        f"({listed}); {problems[first].way_out}, or raise max_quarantined"
    )


def _untokenisable(encode: Encode, texts: Sequence[str]) -> dict[int, Problem]:
    problems = {}
    for number, text in enumerate(texts):
        try:
            encode([text], [True])
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:200]
            problems[number] = Problem(f"the tokenizer fails on it ({reason})", "leave it out of the corpus")
    return problems


def _too_long(tokens: Tokens, texts: Sequence[str], window: int | None) -> dict[int, Problem]:
    lengths = tokens.doc_offsets.diff().tolist()
    over = [number for number, length in enumerate(lengths) if window is not None and length > window]
    if window is None or not over:
        return {}
    fitting = fitting_bytes(window, [lengths[n] for n in over], [len(texts[n].encode()) for n in over])
    way_out = f"set corpus.max_bytes to {fitting} or less"
    return {n: Problem(f"{lengths[n]} tokens, the model's window is {window}", way_out) for n in over}
