"""Recipe files before they are a `Recipe`: reading YAML, `key.path=value` overrides, and what is wrong in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import yaml
from pydantic import ValidationError

from tasks.secrets import redact, refuse_credentials

RECIPES = Path(__file__).parent / "recipes"
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 200_000, 100_000, 50
"""Of a file, and of what it stands for once its anchors are copied: a kilobyte of YAML can stand for 1e9 values."""


class RecipeError(ValueError):
    """A recipe that can't be used; one line per field, for users."""


def read_yaml(source: str) -> dict[str, Any]:  # Any: parsed YAML
    """The mapping in a YAML file: a path, an fsspec URL, or the name of a shipped one. Raises `RecipeError`."""
    text = _read_text(source)
    try:
        data = _parse(text)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: expected a mapping of fields, found {type(data).__name__}; see `llm-fuse init`")
    return data


def _read_text(source: str) -> str:
    shipped = RECIPES / f"{source}.yaml"
    try:
        refuse_credentials(source)
        if source and "/" not in source and shipped.exists():
            return shipped.read_text(encoding="utf-8")
        with fsspec.open(source, "rb") as stream:
            data = bytes(stream.read(_MAX_BYTES + 1))
        if len(data) > _MAX_BYTES:
            raise RecipeError(f"recipe {source!r}: expected at most {_MAX_BYTES:,} bytes, found more; is it a recipe?")
        return data.decode()
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise RecipeError(f"recipe {source!r}: expected a YAML file or one of {known}; found no such file") from None
    except RecipeError:
        raise
    except (OSError, ValueError, ImportError) as error:  # ImportError: a URL whose client isn't installed
        raise RecipeError(redact(f"recipe {source!r}: expected a readable UTF-8 file, found {error}")) from None


class _Loader(yaml.SafeLoader):
    """YAML's plain values, no deeper and no more of them than a recipe can need."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:  # Any: PyYAML is untyped here
        """The next node; composing recurses."""
        self.depth += 1
        _check_depth(self.depth)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Resolves merge keys (`<<`), which copy what they refer to."""
        super().flatten_mapping(node)
        _check_count(len(node.value))


def _parse(text: str) -> Any:  # Any: parsed YAML
    """The value of YAML, nothing in it shared. Raises `RecipeError`, also for values that no recipe can need."""
    try:
        return _unshare(yaml.load(text, Loader=_Loader), [0], 1)
    except RecipeError:
        raise
    except yaml.YAMLError as error:
        raise RecipeError(f"expected YAML, found {_one_line(error)}") from None
    except ValueError as error:  # a date or a number that only looks like one
        raise RecipeError(f"expected YAML, found a value that can't be read: {_one_line(error)}") from None


def _unshare(value: Any, count: list[int], depth: int) -> Any:  # Any: parsed YAML
    """A copy in which what YAML's anchors shared stands apart: an override must reach the one place that it names."""
    count[0] += 1
    _check_count(count[0])
    _check_depth(depth)
    if isinstance(value, dict):
        return {key: _unshare(item, count, depth + 1) for key, item in value.items()}
    return [_unshare(item, count, depth + 1) for item in value] if isinstance(value, list) else value


def _check_count(count: int) -> None:
    if count > _MAX_VALUES:
        raise RecipeError(f"expected at most {_MAX_VALUES:,} values, found more once anchors are copied")


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise RecipeError(f"expected values nested at most {_MAX_DEPTH} deep, found more")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def set_field(data: dict[str, Any], override: str, *, option: str = "--set") -> None:
    """Sets the field that `key.path=value` names. The value is YAML; another `kind` drops the fields of the old one.

    option: how messages call it. Raises `RecipeError`.
    """
    path, found, text = override.partition("=")
    if not found:
        raise RecipeError(f"{option} {override}: expected key.path=value, found no '='")
    try:
        value = _parse(text)
    except RecipeError:
        raise RecipeError(f"{option} {path}: expected a YAML value, found {_short(text)}") from None
    *parents, last = path.split(".")
    if not all([*parents, last]):
        raise RecipeError(f"{option} {_short(path)}: expected names with dots between them, found an empty one")
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
    found = error.errors(include_url=False)
    places = [e["loc"] for e in found if e["type"] != "too_short"]  # items that were refused don't count as too few
    told = [e for e in found if e["type"] != "too_short" or not any(p[: len(e["loc"])] == e["loc"] for p in places)]
    return redact("; ".join(_explain(e, data) for e in told))


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
