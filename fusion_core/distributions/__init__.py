"""Sparse next-token distributions: reduced from logits, joined, chosen row by row, mixed.

`modes` has the extraction modes and the reduction of logits, `draws` the random numbers of the sampled one,
`rows` what turns distributions into distributions, `mixing` their weighted sum, `kernels` what goes through rows on the
CPU.
"""

from fusion_core.distributions.mixing import mix
from fusion_core.distributions.modes import (
    NO_LABEL,
    ExtractionMode,
    ReferenceTopK,
    Sampled,
    TopK,
    TopP,
    finite_rows,
    reduce_logits,
)
from fusion_core.distributions.rows import (
    absent_rows,
    choose_rows,
    concatenate,
    filled_slots,
    normalize_known,
    pad,
    take_rows,
)

__all__ = [
    "NO_LABEL",
    "ExtractionMode",
    "ReferenceTopK",
    "Sampled",
    "TopK",
    "TopP",
    "absent_rows",
    "choose_rows",
    "concatenate",
    "filled_slots",
    "finite_rows",
    "mix",
    "normalize_known",
    "pad",
    "reduce_logits",
    "take_rows",
]
