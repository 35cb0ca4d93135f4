"""Documents that a model can't read: found by themselves, listed by id, and refused when they are too many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fusion_core.types import Tokens
from tasks.corpora.documents import Document
from tasks.engines import Problem, fitting_bytes, without_boundaries
from tasks.engines.encoding import Encoded

Encode = Callable[[Sequence[Document]], Encoded]
"""The tokens of documents: an `Encoder`."""


def encode_readable(
    encode: Encode, pieces: Sequence[Document], window: int | None
) -> tuple[Encoded, dict[int, Problem]]:
    """The tokens of pieces, as `encode` gives them, and what is wrong with some of them, by number.

    A piece that the tokenizer fails on, or that has more tokens than the model's window, is read as if it were empty:
    its begin token alone, at no boundary, so that nothing is learnt from it.
    """
    problems: dict[int, Problem] = {}

    def encode_rest() -> Encoded:
        emptied = {number: replace(pieces[number], text="", messages="", final=False) for number in problems}
        return encode([emptied.get(number, piece) for number, piece in enumerate(pieces)])

    try:
        read = encode_rest()
    except MemoryError:
        raise
    except Exception:  # what a tokenizer raises depends on its kind
        problems |= _untokenisable(encode, pieces)
        if not problems:
            raise
        read = encode_rest()
    too_long = _too_long(read.tokens, pieces, window)
    if too_long:
        problems |= too_long
        read = encode_rest()
    return replace(read, tokens=without_boundaries(read.tokens, problems)), problems


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


def check_some_left(name: str, left_out: Mapping[str, Problem], documents: int) -> None:
    """Raises `ValueError` when a model can read none of so many documents, naming it, the first and its way out.

    left_out: by the document's id.
    """
    if left_out and len(left_out) == documents:
        first, problem = next(iter(left_out.items()))
        raise ValueError(
            f"model {name}: expected documents that it can read, found none among {documents} ({first}: "
            f"{problem.text}); {problem.way_out}"
        )


def _untokenisable(encode: Encode, pieces: Sequence[Document]) -> dict[int, Problem]:
    problems = {}
    for number, piece in enumerate(pieces):
        try:
            encode([piece])
        except MemoryError:
            raise
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:200]
            way_out = "leave it out of the corpus" + ", or set chat_template for this model" * bool(piece.messages)
            problems[number] = Problem(f"the tokenizer fails on it ({reason})", way_out)
    return problems


def _too_long(tokens: Tokens, pieces: Sequence[Document], window: int | None) -> dict[int, Problem]:
    lengths = tokens.doc_offsets.diff().tolist()
    over = [number for number, length in enumerate(lengths) if window is not None and length > window]
    if window is None or not over:
        return {}
    fitting = fitting_bytes(window, [lengths[n] for n in over], [pieces[n].num_bytes for n in over])
    way_out = f"set corpus.max_bytes to {fitting} or less"
    return {n: Problem(f"{lengths[n]} tokens, the model's window is {window}", way_out) for n in over}
