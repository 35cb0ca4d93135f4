"""What a fusion could gain, told before it is run: from vocabularies and text alone, and from a small sample scored."""

from fusion_core.preflight.coverage import (
    RowCounts,
    VocabularyOverlap,
    compare_vocabularies,
    count_rows,
    groups_of_rows,
    predicts_text,
)
from fusion_core.preflight.scores import Truncation, compare_choices, measure_truncation

__all__ = [
    "RowCounts",
    "Truncation",
    "VocabularyOverlap",
    "compare_choices",
    "compare_vocabularies",
    "count_rows",
    "groups_of_rows",
    "measure_truncation",
    "predicts_text",
]
