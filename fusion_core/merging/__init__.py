"""Models of one architecture become one by their weights: a peer of fusion where no tokens need to be aligned.

Each tensor is merged by itself; nothing is known of the others but its name. A *task vector* is a model's tensor
minus the base's (Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, section 2).

Everything is computed in float32 and the result cast once: half types have at most 11 significant bits, so float32's
24 leave nothing to see after the cast, at half the memory of float64. Sums over a whole tensor, and signs that a sum
decides, are taken in float64. What an identity promises (a model merged with itself is itself) therefore holds to the
bit for float16 and bfloat16, unless a weight and the base's differ in magnitude by more than 2**13; otherwise to
float32's rounding of the larger one.

Memory: tensors are read a stretch of `STRETCH` elements at a time, and a strategy holds a few copies of one stretch of
every model, whatever the size of the tensor: 20 MiB were measured for five models. A call `strategy(...)` adds the
result, `strategy.stream(...)` nothing.
"""

from fusion_core.merging.strategies import Dare, Linear, MergeStrategy, Sce, Slerp, TaskArithmetic, Ties
from fusion_core.merging.streaming import MERGEABLE
from fusion_core.merging.stretches import STRETCH, Elements

__all__ = [
    "MERGEABLE",
    "STRETCH",
    "Dare",
    "Elements",
    "Linear",
    "MergeStrategy",
    "Sce",
    "Slerp",
    "TaskArithmetic",
    "Ties",
]
