"""Recipe files before they are a `Recipe`: reading YAML, `key.path=value` overrides, and what is wrong in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import yaml
from pydantic import ValidationError

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that can't be used; one line per field, for users."""


def read_yaml(source: str) -> dict[str, Any]:  # Any: parsed YAML
    """The mapping in a YAML file: a path, an fsspec URL, or the name of a shipped one. Raises `RecipeError`."""
    shipped = RECIPES / f"{source}.yaml"
    try:
        if "/" not in source and shipped.exists():
            text = shipped.read_text(encoding="utf-8")
        else:
            with fsspec.open(source, "r", encoding="utf-8") as stream:
                text = stream.read()
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise RecipeError(f"recipe {source!r}: expected a YAML file or one of {known}; found no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {source!r}: expected a readable UTF-8 file, found {error}") from None
    try:
        data = _unshare(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: expected YAML, found {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: expected a mapping of fields, found {type(data).__name__}; see `llm-fuse init`")
    return data


def _unshare(value: Any) -> Any:  # Any: parsed YAML
    """A copy in which what YAML's anchors shared stands apart: an override must reach the one place that it names."""
    if isinstance(value, dict):
        return {key: _unshare(item) for key, item in value.items()}
    return [_unshare(item) for item in value] if isinstance(value, list) else value


def set_field(data: dict[str, Any], override: str, *, option: str = "--set") -> None:
    """Sets the field that `key.path=value` names. The value is YAML; another `kind` drops the fields of the old one.

    option: how messages call it. Raises `RecipeError`.
    """
    path, found, text = override.partition("=")
    if not found:
        raise RecipeError(f"{option} {override}: expected key.path=value, found no '='")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"{option} {path}: expected a YAML value, found {text!r}") from None
    *parents, last = path.split(".")
    node: Any = data  # Any: whatever YAML holds
    for key in parents:
        node = _child(node, key, f"{option} {path}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
        return
    if not isinstance(node, dict):
        raise RecipeError(f"{option} {path}: expected fields to set, found none at {last!r}; check the path")
    if last == "kind" and node.get("kind") != value:
        node.clear()
    node[last] = value


def _child(node: Any, key: str, path: str) -> Any:  # Any: whatever YAML holds
    """What lies under a key or the number of a list's item; an empty mapping where there was nothing."""
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    if not isinstance(node, dict):
        found = f"a list of {len(node)} (from 0 on)" if isinstance(node, list) else _short(node)
        raise RecipeError(f"{path}: expected something that {key!r} is part of, found {found}; check the path")
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def explain_errors(error: ValidationError, data: object) -> str:
    """What is wrong with the data that a file held, field by field, on one line."""
    return "; ".join(_explain(e, data) for e in error.errors(include_url=False))


def _explain(error: Any, data: object) -> str:  # Any: pydantic's ErrorDetails
    where, context = _path_of(error["loc"], data) or "recipe", error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key; remove it or check its spelling"
        case "missing":
            return f"{where}: missing; it has no default"
        case "union_tag_invalid":
            return f"{where}.kind: expected one of {context['expected_tags']}, found {context['tag']!r}"
        case "union_tag_not_found" | "model_attributes_type":
            return f"{where}: expected a mapping with a kind, found {_short(error['input'])}"
        case "too_short":
            return f"{where}: expected at least {context['min_length']}, found {context['actual_length']}"
        case "value_error":
            return f"{where}: {context['error']}"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, found {_short(error['input'])}"


def _path_of(location: Sequence[str | int], data: Any) -> str:  # Any: whatever YAML holds
    """The path as `--set` takes it: pydantic also names the kind of each union on the way, which the file doesn't."""
    path, in_union = [], False
    for part in location:
        in_union = not in_union and isinstance(data, dict) and "kind" in data and part not in data
        if in_union:
            continue
        path.append(str(part))
        if isinstance(data, dict):
            data = data.get(str(part))
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return ".".join(path)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
