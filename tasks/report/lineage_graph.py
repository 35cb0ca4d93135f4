"""The lineage of a run as one picture: what was made from what, the shards of one step drawn as one box.

Two artifacts share a box exactly when they differ in nothing but the shard they are of: same step, same
specs, inputs that share boxes. Boxes lie in layers, each as late as what uses it allows; their order within
a layer follows Sugiyama, Tagawa and Toda (1981): edges pass through every layer, and sweeps of barycentres
keep them from crossing.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.artifacts import Manifest, canonical_json
from tasks.quantities import format_bytes, format_seconds
from tasks.report.charts import shorten
from tasks.report.evidence import Manifests
from tasks.report.markup import Html, element

_BOX, _GAP, _TALL, _PITCH = 112, 12, 50, 92
_LANE = 14  # room for an edge that passes a layer
_SWEEPS = 12
_SHARD_NUMBER = re.compile(r"\s+\d+/\d+$")


@dataclass
class Box:
    """Artifacts that differ only in their shard. `parents` are keys of boxes."""

    step: str
    subject: str
    parents: tuple[str, ...]
    manifests: list[Manifest] = field(default_factory=list)

    @property
    def detail(self) -> str:
        """How many artifacts, how many bytes, how long they took."""
        count = f"×{len(self.manifests)} · " if len(self.manifests) > 1 else ""
        size = sum(manifest.total_bytes for manifest in self.manifests)
        return f"{count}{format_bytes(size)} · {format_seconds(sum(m.seconds for m in self.manifests))}"


def collapse(manifests: Manifests, names: Mapping[str, str]) -> dict[str, Box]:
    """The boxes by key, parents before children; a parent that is no longer in the store has no box.

    A box is about what its first artifact is called in `names` (by address), or else about what its label says.
    """
    keys: dict[str, str] = {}
    boxes: dict[str, Box] = {}
    for address in _parents_first(manifests):
        manifest = manifests[address]
        key = keys[address] = _key(manifest, keys)
        if key not in boxes:
            parents = dict.fromkeys(keys[ref.address] for ref in manifest.inputs if ref.address in keys)
            boxes[key] = Box(manifest.step, names.get(address) or _subject(manifest), tuple(parents))
        boxes[key].manifests.append(manifest)
    return boxes


def draw_lineage(manifests: Manifests, names: Mapping[str, str], *, marked: str) -> Html:
    """The picture as SVG. `names` of artifacts, by address, replace what their labels say; `marked` stands out."""
    boxes = collapse(manifests, names)
    layout = _Layout(boxes)
    edges = [element("path", d=_edge_path(path, layout), class_="edge") for path in layout.paths]
    drawn = []
    for key, box in boxes.items():
        strong = any(manifest.ref.address == marked for manifest in box.manifests)
        drawn.append(_draw_box(box, layout.across[key], layout.layer[key] * _PITCH, strong))
    said = f"{len(manifests)} artifacts in {len(boxes)} boxes, each below what it was made from"
    view = f"0 -1 {layout.width:.0f} {layout.height + 2}"
    style = f"max-width:{layout.width:.0f}px;min-width:{0.8 * layout.width:.0f}px"  # smaller can't be read: it scrolls
    return element("svg", *edges, *drawn, viewBox=view, style=style, role="img", aria_label=said)


class _Layout:
    """Where everything lies: the layer and the centre of each box and lane, the way of each edge through them.

    A lane is an edge's place in a layer that it only passes; all edges that leave one box share their lanes.
    """

    def __init__(self, boxes: dict[str, Box]) -> None:
        self.layer = _late_layers(boxes)
        self.paths: list[list[str]] = []
        for key, box in boxes.items():
            for parent in box.parents:
                lanes = {f"{parent}@{row}": row for row in range(self.layer[parent] + 1, self.layer[key])}
                self.layer |= lanes
                self.paths.append([parent, *lanes, key])
        self._above, self._below = _neighbours(self.paths)
        self._half = {key: (_BOX + _GAP if key in boxes else _LANE) / 2 for key in self.layer}
        rows: list[list[str]] = [[] for _ in range(max(self.layer.values(), default=0) + 1)]
        for key, row in self.layer.items():
            rows[row].append(key)
        across = self._place(rows)
        left = min((x - self._half[key] for key, x in across.items()), default=0.0)
        self.across = {key: x - left for key, x in across.items()}
        self.width = max((x + self._half[key] for key, x in self.across.items()), default=0.0)
        self.height = (len(rows) - 1) * _PITCH + _TALL

    def _place(self, rows: list[list[str]]) -> dict[str, float]:
        across: dict[str, float] = {}
        for row in rows:
            across |= self._spread(row, dict.fromkeys(row, 0.0))
        for sweep in range(_SWEEPS):
            downwards = sweep % 2 == 0
            for row in rows if downwards else reversed(rows):
                near = self._above if downwards else self._below
                wish = {key: _mean(sorted(across[n] for n in near[key])) if key in near else across[key] for key in row}
                row.sort(key=wish.__getitem__)
                across |= self._spread(row, wish)
        return across

    def _spread(self, row: list[str], wish: dict[str, float]) -> dict[str, float]:
        """Places as near the wished ones as order and widths allow; what gets in its neighbour's way moves with it."""
        blocks: list[tuple[float, int, list[str]]] = []  # where its left edge wants to be, members, keys
        offset = 0.0
        for key in row:
            block = (wish[key] - self._half[key] - offset, 1, [key])
            offset += 2 * self._half[key]
            while blocks and blocks[-1][0] >= block[0]:
                want, count, keys = blocks.pop()
                total = count + block[1]
                block = ((want * count + block[0] * block[1]) / total, total, keys + block[2])
            blocks.append(block)
        placed, offset = {}, 0.0
        for want, _, keys in blocks:
            for key in keys:
                placed[key] = want + offset + self._half[key]
                offset += 2 * self._half[key]
        return placed


def _late_layers(boxes: dict[str, Box]) -> dict[str, int]:
    """0 at the top; every box just above the first box that uses it, the unused ones at the bottom."""
    below = dict.fromkeys(boxes, 0)
    for key in reversed(boxes):
        for parent in boxes[key].parents:
            below[parent] = max(below[parent], below[key] + 1)
    deepest = max(below.values(), default=0)
    return {key: deepest - steps for key, steps in below.items()}


def _neighbours(paths: Sequence[Sequence[str]]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """What is joined to each box or lane in the layer above and in the layer below it."""
    above: dict[str, set[str]] = {}
    below: dict[str, set[str]] = {}
    for path in paths:
        for upper, lower in itertools.pairwise(path):
            above.setdefault(lower, set()).add(upper)
            below.setdefault(upper, set()).add(lower)
    return above, below


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _edge_path(path: Sequence[str], layout: _Layout) -> str:
    """Smooth from box to box, straight down where it passes a layer."""
    x, y = layout.across[path[0]], layout.layer[path[0]] * _PITCH + _TALL
    drawn = f"M{x:.1f},{y:.1f}"
    for key in path[1:]:
        x2, y2 = layout.across[key], layout.layer[key] * _PITCH
        middle = (y + y2) / 2
        drawn += f"C{x:.1f},{middle:.1f} {x2:.1f},{middle:.1f} {x2:.1f},{y2:.1f}"
        if key != path[-1]:
            y2 += _TALL
            drawn += f"V{y2:.1f}"
        x, y = x2, y2
    return drawn


def _draw_box(box: Box, x: float, y: float, strong: bool) -> Html:
    left = x - _BOX / 2
    first, last = box.manifests[0], box.manifests[-1]
    addresses = first.ref.address if first is last else f"{first.ref.address} … {last.ref.address}"
    above, name = (box.step, box.subject) if box.subject else ("", box.step)
    lines = {"step": above.replace("_", " "), "subject": shorten(name.replace("_", " "), 17), "detail": box.detail}
    texts = [
        element("text", line, x=x, y=y + 14 * n + 15, class_=class_, text_anchor="middle")
        for n, (class_, line) in enumerate(lines.items())
    ]
    return element(
        "g",
        element("title", f"{box.step} {box.subject}: {addresses}"),
        element("rect", x=left, y=y, width=_BOX, height=_TALL, rx=4),
        *texts,
        class_="box strong" if strong else "box",
    )


def _parents_first(manifests: Manifests) -> list[str]:
    """All addresses, every artifact after its inputs, otherwise in the order given."""
    ordered: dict[str, None] = {}
    pending = list(reversed(manifests))
    while pending:
        address = pending[-1]
        waiting = [
            ref.address for ref in manifests[address].inputs if ref.address in manifests and ref.address not in ordered
        ]
        if waiting:
            pending += reversed(waiting)
        else:
            ordered[pending.pop()] = None
    return list(ordered)


def _key(manifest: Manifest, keys: dict[str, str]) -> str:
    """A digest of everything that made the artifact but the choice of the shard."""
    names = {ref.identity: keys.get(ref.address, ref.address) for ref in manifest.inputs}
    made = {"step": manifest.step, "arguments": _renamed(manifest.arguments, names), "pins": manifest.pins}
    return hashlib.sha256(canonical_json(made).encode()).hexdigest()[:16]


def _renamed(value: object, names: dict[str, str]) -> object:
    """The arguments with the identities of refs replaced by boxes; a list of one box's refs counts it once."""
    if isinstance(value, dict):
        if set(value) == {"ref"}:
            return {"ref": names.get(value["ref"], value["ref"])}
        return {name: _renamed(item, names) for name, item in value.items()}
    if isinstance(value, list):
        items = [_renamed(item, names) for item in value]
        return [item for n, item in enumerate(items) if n == 0 or item != items[n - 1]] if _all_refs(items) else items
    return value


def _all_refs(items: Sequence[object]) -> bool:
    return all(isinstance(item, dict) and set(item) == {"ref"} for item in items)


def _subject(manifest: Manifest) -> str:
    """What the label says beyond the step's name and the shard's number: `extract neox 003/012` is about neox."""
    words = _SHARD_NUMBER.sub("", manifest.label).split()
    for part in manifest.step.lower().split("_"):
        if words and words[0].lower().startswith(part):
            words.pop(0)
    return " ".join(words)
