"""From a source's rows to the target's rows, on the target's vocabulary (METHOD: "from source rows to target rows").

An alignment strategy is chosen by its `kind` and called as `strategy(source, target, pair)`; it returns one row per
target token, absent where it can't tell. Everything is linear in tokens and entries, and stays on the device of its
input; only texts that the target's tokenizer has to cut pass through the CPU.
"""

from typing import Annotated

from pydantic import Field

from fusion_core.alignment.byte_boundary import ByteBoundary
from fusion_core.alignment.facts import AlignmentFacts, summarize
from fusion_core.alignment.pair import Pair
from fusion_core.alignment.rows import common_rows
from fusion_core.alignment.tally import tally_pairs
from fusion_core.alignment.warping import ExactDTW, MinEditDTW

AlignmentStrategy = Annotated[ByteBoundary | ExactDTW | MinEditDTW, Field(discriminator="kind")]

__all__ = [
    "AlignmentFacts",
    "AlignmentStrategy",
    "ByteBoundary",
    "ExactDTW",
    "MinEditDTW",
    "Pair",
    "common_rows",
    "summarize",
    "tally_pairs",
]
