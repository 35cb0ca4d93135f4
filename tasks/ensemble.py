"""Evaluate several models as one: their probabilities mixed over bytes, which no training can be cheaper than."""

import json

import torch
from pydantic import Field

from fusion_core.ensembles import Weighting, ensemble_nats
from fusion_core.spec import Spec
from tasks.artifacts import EvaluationRef, ModelRef, Runtime, ShardRef
from tasks.corpora.documents import read_documents
from tasks.engines import Dtype
from tasks.evaluation.costs import COSTS
from tasks.evaluation.reading import Reader, tally_costs
from tasks.step import Output, step
from tasks.storage.store import open_store


class EnsembleSpec(Spec):
    """How the models are mixed, and how they read."""

    weighting: Weighting = Field(
        "equal",
        title="Weights",
        description="equal: all count the same; earned: by what the text so far was worth to each.",
    )
    dtype: Dtype = Field("float32", title="Precision", description="Of the weights while reading.")


@step(version=1, on_device=True)
def evaluate_ensemble(
    models: list[ModelRef], shards: list[ShardRef], spec: EnsembleSpec, *, runtime: Runtime, out: Output
) -> EvaluationRef:
    """Nats and bytes per document, as `evaluate` leaves them: `costs.json`. All models are in memory at once."""
    store = open_store(runtime)
    readers = [Reader.load(store, model, spec.dtype, runtime) for model in models]
    costs: dict[str, dict[str, object]] = {}
    for number, shard in enumerate(shards):
        pieces = read_documents(store, shard)
        readings = [reader.read(pieces) for reader in readers]
        sizes = torch.tensor([len(piece.text.encode()) for piece in pieces])
        nats = ensemble_nats([r.scored for r in readings], [r.last_rows for r in readings], sizes, spec.weighting)
        tally_costs(pieces, nats.tolist(), costs)
        out.progress(number + 1, len(shards), "shards")
    (out.dir / COSTS).write_text(json.dumps([{"id": name, **entry} for name, entry in costs.items()]))
    out.facts |= {"documents": len(costs), "models": len(models)}
    return out.ref(EvaluationRef)
