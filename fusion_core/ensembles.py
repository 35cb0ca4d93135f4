"""What a text costs several models together, though their tokens differ: their probabilities mixed over bytes."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion_core.costs import running_sum
from fusion_core.types import Scored

Weighting = Literal["equal", "earned"]


def ensemble_nats(
    readings: Sequence[Scored],
    last_rows: Sequence[Int[Tensor, "_"]],
    num_bytes: Int[Tensor, "docs"],
    weighting: Weighting = "equal",
) -> Float[Tensor, "docs"]:
    """Nats (float64) that each document costs the mixture of the models.

    Between two neighbouring boundaries that all models share, the mixture gives the bytes the mean of the models'
    probabilities of them. `equal`: all weigh the same everywhere. `earned`: a model weighs what the document so far
    was worth to it; over a whole document that is the mean of the models' probabilities of it.

    readings: the same documents, each model's own tokens; every byte but the ones before the first token is paid for.
    last_rows: per model, the row of each document's last text token; what comes after (the end token) isn't counted.
    num_bytes: of each document.
    Raises ValueError without models or for readings of different documents.
    """
    documents = {reading.tokens.num_docs for reading in readings} | {len(num_bytes)}
    if not readings or len(documents) != 1:
        raise ValueError(
            f"expected at least 1 model that has read {len(num_bytes)} documents, found {len(readings)} models "
            f"over {sorted(documents)} documents; score the same documents with each"
        )
    curves = [_curve(reading, last, num_bytes) for reading, last in zip(readings, last_rows, strict=True)]
    if weighting == "earned":
        totals = torch.stack([_at(places, nats, _ends(num_bytes)) for places, nats in curves])
        return -(-totals).logsumexp(0) + math.log(len(readings))
    shared = curves[0][0]
    for places, _ in curves[1:]:
        shared = shared[torch.isin(shared, places)]
    nats = torch.stack([_at(places, values, shared) for places, values in curves])
    spent = nats.diff(dim=1)
    document = _document(shared, num_bytes)
    mixed = -(-spent).logsumexp(0) + math.log(len(readings))
    within = document[1:] == document[:-1]
    return torch.zeros(len(num_bytes), dtype=torch.float64).index_add(0, document[1:][within], mixed[within])


def _starts(num_bytes: Int[Tensor, "docs"]) -> Int[Tensor, "docs"]:
    """Where each document's places begin, on a line that has one for each of its boundaries, 0 and its end included."""
    return (num_bytes + 1).cumsum(0) - (num_bytes + 1)


def _ends(num_bytes: Int[Tensor, "docs"]) -> Int[Tensor, "docs"]:
    return _starts(num_bytes) + num_bytes


def _document(places: Int[Tensor, "places"], num_bytes: Int[Tensor, "docs"]) -> Int[Tensor, "places"]:
    return torch.searchsorted(_starts(num_bytes), places, right=True) - 1


def _curve(
    reading: Scored, last: Int[Tensor, "docs"], num_bytes: Int[Tensor, "docs"]
) -> tuple[Int[Tensor, "places"], Float[Tensor, "places"]]:
    """Places where the model can be asked, rising, and the nats it has spent in the document up to each.

    A document's beginning costs nothing and its end what was spent before the last text token's row.
    """
    tokens, starts = reading.tokens, _starts(num_bytes)
    before = running_sum(reading.nll.double().nan_to_num(nan=0.0))
    spent = before[:-1] - before[tokens.doc_offsets[:-1]][tokens.doc_of_token]
    inside = (tokens.boundaries > 0) & (tokens.boundaries < num_bytes[tokens.doc_of_token])
    places = torch.cat([starts, (starts[tokens.doc_of_token] + tokens.boundaries)[inside], _ends(num_bytes)])
    nats = torch.cat([torch.zeros(len(starts), dtype=torch.float64), spent[inside], spent[last]])
    order = places.argsort()
    return places[order], nats[order]


def _at(
    places: Int[Tensor, "places"], nats: Float[Tensor, "places"], wanted: Int[Tensor, "wanted"]
) -> Float[Tensor, "wanted"]:
    return nats[torch.searchsorted(places, wanted)]
