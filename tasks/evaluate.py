"""Evaluate: what a model pays for every held-out document, in nats, whatever its tokenizer."""

import functools
import json
import operator

from pydantic import Field

from fusion_core.distributions import TopK
from fusion_core.metrics import Calibration, measure_calibration
from fusion_core.spec import Spec
from fusion_core.types import NO_BOUNDARY, Scored
from tasks.artifacts import EvaluationRef, ModelRef, Runtime, ShardRef
from tasks.corpora.documents import read_documents
from tasks.engines import Dtype, ModelScorer, check_window, pick_device, score_tokens, tokens_per_batch
from tasks.evaluation.costs import COSTS
from tasks.models.folders import (
    context_window,
    encode_documents,
    load_config,
    load_model,
    load_tokenizer,
    vocabulary_of,
)
from tasks.step import Output, step
from tasks.storage.store import open_store


class EvaluationSpec(Spec):
    """How the held-out text is read."""

    dtype: Dtype = Field("float32", title="Precision", description="Of the weights while reading.")


@step(version=2, on_device=True)
def evaluate(
    model: ModelRef, shards: list[ShardRef], spec: EvaluationSpec, *, runtime: Runtime, out: Output
) -> EvaluationRef:
    """Nats and bytes per document: `costs.json`. Every byte of the text is paid for; the end token isn't counted.

    Facts hold the calibration of the likeliest token (`fusion_core.metrics.Calibration`) over the same tokens.
    """
    store = open_store(runtime)
    folder = store.fetch(model)
    tokenizer = load_tokenizer(folder)
    vocabulary, window = vocabulary_of(tokenizer), context_window(load_config(folder))
    network = load_model(folder, spec.dtype, pick_device(runtime.device))
    batch_tokens = tokens_per_batch(runtime.batch_tokens, network.device)
    scorer = ModelScorer(network, TopK(k=1), vocabulary.size, batch_tokens=batch_tokens)
    costs: dict[str, dict[str, object]] = {}
    calibrations: dict[str, Calibration] = {}
    for number, shard in enumerate(shards):
        pieces = read_documents(store, shard)
        tokens = encode_documents(tokenizer, vocabulary, [p.text for p in pieces], [p.final for p in pieces])
        check_window(window, tokens, [len(p.text.encode()) for p in pieces])
        scored, quarantined = score_tokens(scorer, tokens, vocabulary.size)
        if quarantined:
            raise ValueError(
                f"evaluation: expected finite logits, found NaN or infinity in document {pieces[min(quarantined)].id}"
            )
        starts = tokens.doc_offsets.tolist()
        for i, piece in enumerate(pieces):
            last = starts[i + 1] - (2 if piece.final and tokens.boundaries[starts[i + 1] - 1] == NO_BOUNDARY else 1)
            _add_calibration(calibrations, piece.domain, scored, starts[i], last)
            entry = costs.setdefault(piece.id, {"domain": piece.domain, "bytes": 0, "nats": 0.0})
            entry["bytes"] += len(piece.text.encode())  # type: ignore[operator]
            entry["nats"] += float(scored.nll[starts[i] : last].double().sum())  # type: ignore[operator]
        out.progress(number + 1, len(shards), "shards")
    (out.dir / COSTS).write_text(json.dumps([{"id": name, **entry} for name, entry in costs.items()]))
    out.facts |= {"documents": len(costs), "calibration": _describe(calibrations)}
    return out.ref(EvaluationRef)


def _add_calibration(found: dict[str, Calibration], domain: str, scored: Scored, start: int, stop: int) -> None:
    """Adds how well the rows from `start` to `stop` were known to their domain's calibration."""
    if start == stop:
        return
    likeliest = scored.dist.rows(start, stop)  # one entry per row
    correct = likeliest.ids == scored.tokens.ids[start + 1 : stop + 1]
    confidence = likeliest.logprobs.double().exp()
    here = measure_calibration(confidence.numpy(), correct.numpy(), scored.nll[start:stop].numpy())
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
