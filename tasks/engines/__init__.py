"""Engines: what turns a model and a shard's tokens into its distributions.

`scoring` has what every engine gives, `forward` the models that run in this process, `heads` how these are taken apart.
An engine is a `Spec` that opens a model, so that another one (a server, another library) is another word in a recipe.
"""

from tasks.engines.batches import pad_batch, plan_batches
from tasks.engines.devices import Dtype, pick_device, tokens_per_batch
from tasks.engines.forward import ModelScorer, TransformersEngine
from tasks.engines.heads import Head, split_head
from tasks.engines.scoring import DocumentRows, Problem, Scorer, score_tokens, without_boundaries
from tasks.engines.sizes import check_window, count_parameters, fitting_bytes

__all__ = [
    "DocumentRows",
    "Dtype",
    "Head",
    "ModelScorer",
    "Problem",
    "Scorer",
    "TransformersEngine",
    "check_window",
    "count_parameters",
    "fitting_bytes",
    "pad_batch",
    "pick_device",
    "plan_batches",
    "score_tokens",
    "split_head",
    "tokens_per_batch",
    "without_boundaries",
]
