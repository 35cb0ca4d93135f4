"""What the values of a shard tell of themselves."""

import pytest
import torch

from fusion_core.types import Scored, TokenDist, Tokens

INF, NAN = float("inf"), float("nan")


def _scored(*documents: str) -> Scored:
    """Rows of documents: `+` with nll, `.` without one, `-` absent and without one."""
    rows = "".join(documents)
    unknown = torch.tensor([0.0 if row == "-" else -INF for row in rows])
    tail = torch.tensor([-INF if row == "-" else 0.0 for row in rows])
    dist = TokenDist(torch.zeros(len(rows) + 1).long(), torch.zeros(0).long(), torch.zeros(0), tail, unknown, 4)
    offsets = torch.tensor([0, *map(len, documents)]).cumsum(0)
    tokens = Tokens(torch.zeros(len(rows)).long(), torch.full((len(rows),), -1), offsets)
    return Scored(tokens, dist, torch.tensor([1.0 if row == "+" else NAN for row in rows]))


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ("+++.", "1111"),  # plain
        ("+++-", "1111"),  # plain, and nothing is known behind the last token
        ("-++--+--", "01100100"),  # a conversation
        ("--++.", "00111"),  # one that ends in text
        ("---", "111"),  # not read
        ("-", "1"),
        ("", ""),
    ],
)
def test_a_teacher_is_wanted_for_all_but_the_hidden_rows_of_conversations(document: str, wanted: str) -> None:
    found = _scored("++.", document, "-+-", "---").wanted.tolist()
    assert found == [sign == "1" for sign in f"111{wanted}010111"]
    assert _scored(document).wanted.tolist() == [sign == "1" for sign in wanted]
