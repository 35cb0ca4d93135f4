"""Engines: what turns a model and a shard's tokens into its distributions.

`scoring` has what every engine gives, `forward` the models that run in this process, `heads` how these are taken apart,
`endpoint` and `vllm_engine` the models that are served, `served` what these two share.
An engine is a `Spec` that opens a model, so that another one (a server, another library) is another word in a recipe.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field

from tasks.engines.batches import pad_batch, plan_batches
from tasks.engines.devices import Dtype, pick_device, tokens_per_batch
from tasks.engines.endpoint import EndpointEngine
from tasks.engines.forward import ModelScorer, TransformersEngine
from tasks.engines.heads import Head, split_head
from tasks.engines.scoring import DocumentRows, Problem, Scorer, score_tokens, without_boundaries
from tasks.engines.sizes import check_window, count_parameters, fitting_bytes
from tasks.engines.vllm_engine import VllmEngine


def _usual_kind(value: object) -> object:
    """A mapping without a kind is the usual engine's: `{dtype: float16}` says enough."""
    return {"kind": "transformers", **value} if isinstance(value, Mapping) else value


Engine = Annotated[
    Annotated[TransformersEngine | EndpointEngine | VllmEngine, Field(discriminator="kind")],
    BeforeValidator(_usual_kind),
]

__all__ = [
    "DocumentRows",
    "Dtype",
    "EndpointEngine",
    "Engine",
    "Head",
    "ModelScorer",
    "Problem",
    "Scorer",
    "TransformersEngine",
    "VllmEngine",
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
