"""`reference: true`: what a recipe has to choose for the original's arithmetic, filled in or refused by name.

Which of the original's rules a whole run then follows (numbers as in `fusion_core.reference`):

| # | rule of the original | in a run |
|---|---|---|
| 1 | one-hot on the token just read where nothing matches | `alignment.reference` |
| 2 | softmax of the kept candidates alone, in bf16 | `reference_top_k`, `reference_min_ce`, `reference_avg_ce` |
| 3 | of colliding candidates the first wins | `alignment.reference` |
| 4 | weights softmax(exp(-CE)) | `reference_avg_ce` |
| 5 | rewards in bf16; ties to the target, or without it to the last source | `fusion.base_teaches` |
| 6 | nats per token of each model's own, end token included | `Aligned.cross_entropy` |
| 7 | cross-entropies averaged over packed blocks | `fusion.level: block`, over the target's tokens of a shard |
| 8 | spelling decides, special tokens too; ties by id | `vocab_mapping.reference` |
|   | the teacher's term is a mean over tokens, the last included | `reference_cross_entropy`, `reference_kl` |
|   | hard, hard_and_decay | `training.lm_weight_schedule: fixed`, `rising` |
|   | soft | `fusion.trust: reward`, `training.lm_weight: 0`, one sequence per step |
|   | the first-position rule for GPT-NeoX vocabularies | `alignment.first_marker`, never guessed |

Not followed, because all models of all runs read one corpus in the same pieces: texts cut by the models' own tokens
and packed sequences as what a model is trained on (`split_long_text` and `pack` are functions only). Documents begin
with the begin token where a model has one, which the original leaves out. One alignment serves all sources, so
`first_marker` holds for all. Rows 9 and 10, any number of sources and ids past a tokenizer's vocabulary, stay as they
are here: neither has a number to reproduce.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

Fields = dict[str, Any]  # Any: what stands in a recipe before it is checked


@dataclass(frozen=True)
class _Rule:
    """What one choice of a recipe may be: its kinds and the original's name of each, and fields that are fixed.

    dropped: what the original's kind has no field for, because it does nothing else.
    """

    path: tuple[str, ...]
    kinds: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, Any] = field(default_factory=dict)


_RULES = (
    _Rule(("extraction", "mode"), {"top_k": "reference_top_k"}),
    _Rule(("vocab_mapping",), {"min_edit": "min_edit"}, fixed={"reference": True}),
    _Rule(
        ("alignment",),
        {"min_edit_dtw": "min_edit_dtw", "exact_dtw": "exact_dtw"},
        fixed={"reference": True, "unmatched": "absent"},
    ),
    _Rule(
        ("fusion",),
        {"min_ce": "reference_min_ce", "avg_ce": "reference_avg_ce"},
        dropped={"score": "nats_per_token"},
    ),
    _Rule(
        ("training", "divergence"),
        {"soft_cross_entropy": "reference_cross_entropy", "forward_kl": "reference_kl"},
        dropped={"tail": "renormalise"},
    ),
)


def choose_reference(recipe: Mapping[str, Any]) -> Fields:
    """The fields of a recipe with `reference: true`, its choices being the original's.

    A choice that is left out becomes the paper's; one that names its kind becomes the original's version of it.
    What is no mapping where one belongs is left for the recipe's own check to refuse.
    Raises ValueError for any other, and for a field that contradicts the original.
    """
    chosen = dict(recipe)
    if not all(_is_readable(chosen, rule.path) for rule in _RULES):
        return chosen
    for rule in _RULES:
        _place(chosen, rule.path, _apply(rule, _find(chosen, rule.path)))
    exact = chosen["alignment"]["kind"] == "exact_dtw"
    target_teaches = chosen.get("target_as_teacher", False)
    _fix(chosen["vocab_mapping"], "max_distance", 0 if exact else None, "vocab_mapping")
    _fix(chosen["fusion"], "base_teaches", target_teaches, "fusion")
    if exact and not target_teaches:
        raise ValueError(
            "reference: true with alignment exact_dtw gives rows without candidates the target's, expected "
            f"target_as_teacher true, found {target_teaches}; set it, or take min_edit_dtw"
        )
    return chosen


def _apply(rule: _Rule, given: Fields) -> Fields:
    path = ".".join(rule.path)
    kind = str(given.get("kind", next(iter(rule.kinds))))
    if kind not in {*rule.kinds, *rule.kinds.values()}:
        raise ValueError(
            f"reference: true fixes {path} to {' or '.join(rule.kinds)}, found {kind}; choose that, or reference: false"
        )
    fields = given | {"kind": rule.kinds.get(kind, kind)}
    for name, value in rule.dropped.items():
        _fix(fields, name, value, path)
        del fields[name]
    for name, value in rule.fixed.items():
        _fix(fields, name, value, path)
    return fields


def _fix(fields: Fields, name: str, value: object, path: str) -> None:
    found = fields.setdefault(name, value)
    if found != value:
        raise ValueError(
            f"reference: true fixes {path}.{name} to {_say(value)}, found {_say(found)}; "
            "leave it out, or reference: false"
        )


def _say(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "empty" if value is None else str(value)


def _is_readable(recipe: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    node: Any = recipe
    for key in path:
        node = _fields(node).get(key)
        if not (node is None or isinstance(node, Mapping | BaseModel)):
            return False
    return True


def _find(recipe: Mapping[str, Any], path: tuple[str, ...]) -> Fields:
    node: Any = recipe
    for key in path:
        node = _fields(node).get(key)
    return _fields(node)


def _place(recipe: Fields, path: tuple[str, ...], value: Fields) -> None:
    first, *rest = path
    for key in reversed(rest):
        value = _fields(recipe.get(first)) | {key: value}
    recipe[first] = value


def _fields(node: object) -> Fields:
    """What was said of a choice: a mapping's items, or the fields of a value made in Python that were set."""
    if isinstance(node, BaseModel):
        kind = {"kind": node.kind} if hasattr(node, "kind") else {}
        return kind | {name: getattr(node, name) for name in node.model_fields_set}
    return dict(node) if isinstance(node, Mapping) else {}
