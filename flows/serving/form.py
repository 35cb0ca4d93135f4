"""The run form: the JSON schema of a flow's parameters, said in the way that Prefect's form understands.

Pydantic says a choice as `oneOf` with a discriminator. The form knows `anyOf` alone, shows one tab for each of its
members, and finds the tab of a given value by counting the fields that both have; of several with as many, the first.
"""

import copy
from collections.abc import Iterator
from typing import Any

from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema

Schema = dict[str, Any]  # Any: JSON


def form_schema(flow: Flow[..., Any]) -> Schema:
    """The schema of the flow's form; what it accepts is what the flow accepts, as far as JSON schemas say that.

    Members of a choice that have the same fields can't be told apart by them: they share a tab, which has a list of
    their kinds. A member whose fields another one has too comes before that one.
    """
    schema: Schema = copy.deepcopy(parameter_schema(flow).model_dump(exclude_unset=True))
    definitions = schema["definitions"]
    for definition in list(definitions.values()):
        if "const" in (kind := definition.get("properties", {}).get("kind", {})):
            kind |= {"enum": [kind.pop("const")], "description": _first_line(definition)}
    for node in list(_nodes(schema)):
        if isinstance(items := node.get("items"), dict) and "oneOf" in items:
            _choose(items, definitions)
            if "anyOf" in items:
                _merge_tabs(items, definitions)
        elif "oneOf" in node:
            _choose(node, definitions)
    return schema


def _choose(node: Schema, definitions: Schema) -> None:
    """Turns a choice into tabs."""
    names = [member["$ref"].rpartition("/")[2] for member in node.pop("oneOf")]
    node.pop("discriminator", None)
    groups: dict[frozenset[str], list[str]] = {}
    for name in names:
        groups.setdefault(frozenset(definitions[name]["properties"]), []).append(name)
    tabs = [{"$ref": f"#/definitions/{_tab(definitions, groups[fields])}"} for fields in _small_first(list(groups))]
    node |= tabs[0] if len(tabs) == 1 else {"anyOf": tabs}


def _merge_tabs(items: Schema, definitions: Schema) -> None:
    """Turns a choice within a list into one box with the fields of all.

    The older of Prefect's UIs has no tabs there and shows the box; the newer one shows the `anyOf` in it as tabs.
    None of the fields has a default there, which the form would fill in for every kind; what must fit is still said.
    """
    names = [tab["$ref"].rpartition("/")[2] for tab in items["anyOf"]]
    told: dict[str, list[tuple[Schema, Schema]]] = {}
    for member in (definitions[name] for name in names):
        for field in member["properties"]:
            told.setdefault(field, []).append((member, member["properties"][field]))
    merged = {
        "type": "object",
        "properties": {field: _merge_field(field, said, len(names)) for field, said in told.items()},
        "required": ["kind"],
        "anyOf": items.pop("anyOf"),
    }
    definitions[" or ".join(names)] = merged
    items |= {"$ref": f"#/definitions/{' or '.join(names)}", "default": {"kind": _kinds(definitions[names[0]])[0]}}


def _merge_field(name: str, said: list[tuple[Schema, Schema]], members: int) -> Schema:
    """A field of several definitions: what they agree on, and what it means to each."""
    first = said[0][1]
    if name == "kind":
        kinds = [kind for member, _ in said for kind in _kinds(member)]
        meanings = [f"- `{', '.join(_kinds(member))}`: {field['description']}" for member, field in said]
        return {"title": "Kind", "type": "string", "enum": kinds, "description": "\n\n".join(meanings)}
    meant: dict[str, list[str]] = {}
    for member, field in said:
        needed = ", needed" if name in member.get("required", ()) else ""
        meant.setdefault(field["description"], []).append(f"`{', '.join(_kinds(member))}`{needed}")
    agreed = {key: value for key, value in first.items() if all(field.get(key) == value for _, field in said)}
    agreed.pop("default", None)
    if len(said) < members or len(meant) > 1:
        agreed["description"] = "\n\n".join(f"{', '.join(kinds)}: {meaning}" for meaning, kinds in meant.items())
    return {"title": first["title"], **agreed}


def _kinds(definition: Schema) -> list[str]:
    kinds: list[str] = definition["properties"]["kind"]["enum"]
    return kinds


def _nodes(value: object) -> Iterator[Schema]:
    """All mappings within the value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _small_first(groups: list[frozenset[str]]) -> list[frozenset[str]]:
    """The groups in their order, except that none comes after one that has all its fields and more."""
    placed: list[frozenset[str]] = []
    for group in groups:
        at = next((i for i, other in enumerate(placed) if group < other), len(placed))
        placed.insert(at, group)
    return placed


def _tab(definitions: Schema, names: list[str]) -> str:
    """The name of the definition that stands for all of them, added where they are several."""
    if len(names) == 1:
        return names[0]
    name = " or ".join(names)
    kinds = [definitions[each]["properties"]["kind"] for each in names]
    values = [kind["enum"][0] for kind in kinds]
    meanings = [f"- `{kind['enum'][0]}`: {kind['description']}" for kind in kinds]
    tab: Schema = copy.deepcopy(definitions[names[0]]) | {"title": ", ".join(names)}
    tab["properties"]["kind"] |= {"title": "Kind", "enum": values, "description": "\n\n".join(meanings)}
    definitions[name] = tab
    return name


def _first_line(definition: Schema) -> str:
    return str(definition.get("description", "")).split("\n\n")[0].replace("\n", " ")
