"""Questions to lineage: which models contain a document, and why two artifacts aren't the same."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.artifacts import CorpusRef, Manifest, ModelRef, Ref, ShardRef, StoreError
from tasks.corpora.documents import holds_document, list_shards
from tasks.library.lineage import Library

# ---- documents -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentTrace:
    """Where a document went: the shards that hold a piece of it, and what they went into.

    trained: models trained on such a shard themselves. inherited: models made from what was made of one: a target, a
    teacher. read: what else read such a shard itself: extractions, evaluations. unread: corpora that can't be read.
    """

    shards: tuple[ShardRef, ...]
    trained: tuple[ModelRef, ...]
    inherited: tuple[ModelRef, ...]
    read: tuple[Ref, ...]
    unread: tuple[str, ...]


def trace_document(library: Library, document: str) -> DocumentTrace:
    """Where the document with this id went (`tasks.corpora.documents.text_id`); reads every corpus's ids."""
    holding: dict[str, list[ShardRef]] = {}
    unread = []
    for ref in [m.ref for m in library.manifests.values() if isinstance(m.ref, CorpusRef)]:
        try:
            for shard in list_shards(library.store, ref):
                if shard.digest in holding:  # the same content in another corpus
                    holding[shard.digest] += [shard] if holding[shard.digest] else []
                else:
                    holding[shard.digest] = [shard] if holds_document(library.store, shard, document) else []
        except StoreError as error:
            unread.append(f"{ref}: {error}")
    digests = {digest for digest, found in holding.items() if found}
    reached = {ref.address: ref for found in holding.values() if found for ref in library.descendants(found[0])}
    readers = {address for address in reached if _shards_read(library.known[address]) & digests}
    models = [ref for ref in reached.values() if isinstance(ref, ModelRef)]
    return DocumentTrace(
        shards=tuple(shard for found in holding.values() for shard in found),
        trained=tuple(ref for ref in models if ref.address in readers),
        inherited=tuple(ref for ref in models if ref.address not in readers),
        read=tuple(ref for ref in reached.values() if ref.address in readers and not isinstance(ref, ModelRef)),
        unread=tuple(unread),
    )


def _shards_read(manifest: Manifest) -> set[str]:
    return {ref.digest for ref in manifest.inputs if isinstance(ref, ShardRef)}


# ---- differences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One reason why two artifacts differ: at `where` the left one has `left` and the right one `right` (JSON).

    trail: the pairs of artifacts on the way there, from the two that were compared to the two that differ by
    themselves, each as the argument by which the pair before it took it (empty for the first), and both.
    """

    where: str
    left: str
    right: str
    trail: tuple[tuple[str, Ref, Ref], ...]


ABSENT = "–"
"""What a difference shows of a value that only the other artifact has."""


def compare_artifacts(library: Library, left: Ref, right: Ref) -> list[Difference]:
    """Why the two aren't the same: first what they differ in by themselves, then what their inputs differ in.

    Inputs are followed to what differs by itself: a setting, a version of a step, what the world was found to be. Each
    pair of inputs is followed once. What only one of them has comes last. Empty for the same artifact.
    """
    found: list[Difference] = []
    layer: list[tuple[tuple[str, Ref, Ref], ...]] = [(("", left, right),)]
    seen: set[tuple[str, str]] = set()
    while layer:
        deeper = []
        for trail in layer:
            _, one, other = trail[-1]
            pair = (one.identity, other.identity)
            if one.identity == other.identity or pair in seen:
                continue
            seen.add(pair)
            own, inputs = _differences(library, one, other)
            found += [Difference(where, a, b, trail) for where, a, b in own]
            deeper += [(*trail, step) for step in inputs]
        layer = deeper
    return sorted(found, key=lambda difference: ABSENT in (difference.left, difference.right))  # rather a consequence


def _differences(
    library: Library, one: Ref, other: Ref
) -> tuple[list[tuple[str, str, str]], list[tuple[str, Ref, Ref]]]:
    """What two artifacts differ in by themselves, and the pairs of inputs in which they differ."""
    left, right = library.known.get(one.address), library.known.get(other.address)
    if left is None or right is None:
        there, here = (ABSENT if manifest is None else "in the store" for manifest in (left, right))
        return [("its manifest", there, here)], []
    if left.step != right.step or left.version != right.version:
        return [("step", f"{left.step} {left.version}", f"{right.step} {right.version}")], []
    if isinstance(one, ShardRef) and isinstance(other, ShardRef) and one.address == other.address:
        return [("shard", str(one.index), str(other.index))], []
    own: list[tuple[str, str, str]] = []
    inputs: list[tuple[str, Ref, Ref]] = []
    known = {ref.identity: ref for manifest in (left, right) for ref in manifest.inputs}
    for name, a, b in _walk({**left.arguments, "pins": left.pins}, {**right.arguments, "pins": right.pins}, ""):
        refs = [known.get(value["ref"]) if isinstance(value, dict) and "ref" in value else None for value in (a, b)]
        if refs[0] is not None and refs[1] is not None:
            inputs.append((name, refs[0], refs[1]))
        else:
            shown = [_show(value) if ref is None else str(ref) for value, ref in zip((a, b), refs, strict=True)]
            own.append((name, shown[0], shown[1]))
    return own, inputs


class _Absent:
    """The value of an argument that one side doesn't have; None is a value."""


def _walk(left: Any, right: Any, path: str) -> Iterator[tuple[str, Any, Any]]:  # Any: plain JSON
    """The innermost places in which two values differ, in order."""
    if left == right:
        return
    if isinstance(left, dict) and isinstance(right, dict) and not ("ref" in left or "ref" in right):
        for key in dict.fromkeys([*left, *right]):
            yield from _walk(left.get(key, _Absent), right.get(key, _Absent), f"{path}.{key}" if path else key)
    elif isinstance(left, list) and isinstance(right, list):
        for number in range(max(len(left), len(right))):
            a, b = (side[number] if number < len(side) else _Absent for side in (left, right))
            yield from _walk(a, b, f"{path}[{number}]")
    else:
        yield path, left, right


def _show(value: Any) -> str:  # Any: plain JSON
    text = ABSENT if value is _Absent else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
