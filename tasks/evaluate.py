"""Evaluate: what a model pays for every held-out document, in nats, whatever its tokenizer."""

import functools
import json
import operator

from pydantic import Field
from torch import Tensor

from fusion_core.distributions import take_rows
from fusion_core.metrics import Calibration, measure_calibration
from fusion_core.spec import Spec
from fusion_core.types import Scored
from tasks.artifacts import EvaluationRef, ModelRef, Runtime, ShardRef
from tasks.corpora.documents import read_documents
from tasks.engines import Dtype
from tasks.evaluation.costs import COSTS
from tasks.evaluation.reading import Reader, tally_costs
from tasks.step import Output, step
from tasks.storage.store import open_store


class EvaluationSpec(Spec):
    """How the held-out text is read."""

    dtype: Dtype = Field("float32", title="Precision", description="Of the weights while reading.")


@step(version=2, on_device=True)
def evaluate(
    model: ModelRef, shards: list[ShardRef], spec: EvaluationSpec, *, runtime: Runtime, out: Output
) -> EvaluationRef:
    """Nats and bytes per document: `costs.json`.

    Every byte of the text, of a conversation what the assistant says, is paid for; the end token isn't counted.

    Facts hold the calibration of the likeliest token (`fusion_core.metrics.Calibration`) over the same tokens.
    """
    store = open_store(runtime)
    reader = Reader.load(store, model, spec.dtype, runtime)
    costs: dict[str, dict[str, object]] = {}
    calibrations: dict[str, Calibration] = {}
    for number, shard in enumerate(shards):
        pieces = read_documents(store, shard)
        reading = reader.read(pieces)
        rows = reading.rows()
        tally_costs(pieces, [float(reading.scored.nll[here].double().sum()) for here in rows], costs)
        for piece, here in zip(pieces, rows, strict=True):
            _add_calibration(calibrations, piece.domain, reading.scored, here)
        out.progress(number + 1, len(shards), "shards")
    (out.dir / COSTS).write_text(json.dumps([{"id": name, **entry} for name, entry in costs.items()]))
    out.facts |= {"documents": len(costs), "calibration": _describe(calibrations)}
    return out.ref(EvaluationRef)


def _add_calibration(found: dict[str, Calibration], domain: str, scored: Scored, rows: Tensor) -> None:
    """Adds how well the labels of these rows were known to their domain's calibration."""
    if not len(rows):
        return
    likeliest = take_rows(scored.dist, rows)  # one entry per row
    correct = likeliest.ids == scored.tokens.ids[rows + 1]
    confidence = likeliest.logprobs.double().exp()
    here = measure_calibration(confidence.numpy(), correct.numpy(), scored.nll[rows].numpy())
    found[domain] = found[domain] + here if domain in found else here


def _describe(calibrations: dict[str, Calibration]) -> dict[str, dict[str, float]]:
    """Per domain, and under `""` over all tokens: error, accuracy, confidence and nats per token."""
    if not calibrations:
        return {}
    every = {"": functools.reduce(operator.add, calibrations.values()), **calibrations}
    return {
        name: {
            "tokens": c.tokens,
            "error": c.error,
            "accuracy": c.accuracy,
            "mean_confidence": c.mean_confidence,
            "nats_per_token": c.nats_per_token,
        }
        for name, c in every.items()
    }
