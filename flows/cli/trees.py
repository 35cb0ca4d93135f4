"""What the terminal shows of lineage: ancestors as a tree, users as a list, a document's models, differences."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from flows.cli.tables import show_bytes
from tasks.artifacts import Manifest, Ref

if TYPE_CHECKING:
    from tasks.library.lineage import Library
    from tasks.library.tracing import Difference, DocumentTrace

_NUMBER = re.compile(r"\[\d+\]")
_COUNTER = re.compile(r" \d+/\d+$")
_SHOWN_FACTS = ("id", "commit", "path", "licence", "documents", "tokens")


def lineage_tree(library: "Library", ref: Ref) -> RenderableType:
    """Back from an artifact to text and models, shards of one stage together, and what has used it."""
    tree = Tree(_describe(library, [ref]))
    _grow(library, tree, [ref], set())
    users = [Text(f"  {_describe(library, group)}") for group in _stages(library, library.descendants(ref))]
    return Group(tree, Text("used by" if users else "used by nothing", style="dim"), *users)


def document_table(library: "Library", trace: "DocumentTrace") -> RenderableType:
    """The models that contain a document, most directly first, what else read it, and where it stands."""
    if not trace.shards:
        lines = [Text(f"in no corpus of {library.store.root}", style="dim")]
    else:
        models = {"trained on it": trace.trained, "made from a model that was, or with its help": trace.inherited}
        told: dict[str, list[list[Ref]]] = {title: [[ref] for ref in refs] for title, refs in models.items()}
        told["read it besides"] = _stages(library, trace.read)
        lines = []
        for title, groups in told.items():
            if groups:
                lines += [Text(title, style="dim"), *[Text(f"  {_describe(library, group)}") for group in groups]]
        lines += [Text("stands in", style="dim"), *[Text(f"  {shard} shard {shard.index}") for shard in trace.shards]]
    return Group(*lines, *[Text(f"could not be read: {told}", style="red") for told in trace.unread])


def differences_list(library: "Library", left: Ref, right: Ref, differences: "Sequence[Difference]") -> RenderableType:
    """The first difference with the way to it, then the others, those that differ in a number of a list as one."""
    title = Text(f"{_describe(library, [left])}\n{_describe(library, [right])}")
    if not differences:
        return Group(title, Text("the same artifact", style="dim"))
    alike: dict[str, list[Difference]] = {}
    for difference in differences:
        alike.setdefault(_NUMBER.sub("[*]", _way(difference)), []).append(difference)
    lines = []
    for way, group in alike.items():
        first, more = group[0], f"  and {len(group) - 1} alike" if len(group) > 1 else ""
        way = _way(first) if len(group) == 1 else way
        lines.append(Text.assemble((way, "bold"), f": {first.left} against {first.right}", (more, "dim")))
    others = [Text("then in", style="dim"), *lines[1:]] if lines[1:] else []
    return Group(title, Text("they differ first in", style="dim"), lines[0], *others)


def _way(difference: "Difference") -> str:
    inputs = [argument for argument, _, _ in difference.trail if argument]
    return " > ".join([*inputs, difference.where])


def _grow(library: "Library", tree: Tree, refs: list[Ref], shown: set[str]) -> None:
    inputs = {i.address: i for ref in refs if (m := library.known.get(ref.address)) for i in m.inputs}
    for group in _stages(library, inputs.values()):
        branch = tree.add(_describe(library, group))
        if fresh := [ref for ref in group if ref.address not in shown]:
            shown.update(ref.address for ref in fresh)
            _grow(library, branch, fresh, shown)
        elif any(library.known[ref.address].inputs for ref in group if ref.address in library.known):
            branch.add(Text("as above", style="dim"))


def _stages(library: "Library", refs: Iterable[Ref]) -> list[list[Ref]]:
    """The refs by stage: the shards of `extract neox` are one group."""
    groups: dict[tuple[str, str], list[Ref]] = {}
    for ref in refs:
        manifest = library.known.get(ref.address)
        label = ref.address if manifest is None else _COUNTER.sub("", manifest.label)
        groups.setdefault((ref.step, label), []).append(ref)
    return list(groups.values())


def _describe(library: "Library", refs: list[Ref]) -> Text:
    """One line for an artifact or the shards of one stage."""
    manifests = [library.known[ref.address] for ref in refs if ref.address in library.known]
    if not manifests:
        return Text(f"{refs[0]}  missing", style="red")
    size = show_bytes(sum(m.total_bytes for m in manifests))
    seconds = sum(m.seconds for m in manifests)
    label = _COUNTER.sub("", manifests[0].label) if len(refs) > 1 else manifests[0].label
    where = f"{len(refs)} shards" if len(refs) > 1 else str(refs[0])
    facts = "" if len(refs) > 1 else _facts(manifests[0])
    facts += "" if refs[0].address in library.manifests else "  elsewhere"
    return Text.assemble(
        (label, "bold"), f"  {where}  ", (f"{size}  {seconds:.1f} s  {manifests[0].started_at}{facts}", "dim")
    )


def _facts(manifest: Manifest) -> str:
    return "".join(f"  {name} {manifest.facts[name]}" for name in _SHOWN_FACTS if manifest.facts.get(name) is not None)
