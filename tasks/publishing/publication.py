"""A model made ready to leave the house: what speaks against it, and the files that are published."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from torch import Tensor

from fusion_core.merging import STRETCH
from tasks.artifacts import ModelRef
from tasks.library.lineage_export import to_prov
from tasks.models.weights import open_weights, write_weights
from tasks.publishing.card import CARD, PROVENANCE, RECIPE, write_card
from tasks.publishing.provenance import Provenance
from tasks.storage.store import Store

SUMS = "SHA256SUMS"
"""The digests of all published files, as `sha256sum -c` reads them; equal ones mean the same publication."""
SHARD_BYTES = 5 * 10**9
"""Of a published weight file: what hubs and servers of models take well."""


@dataclass(frozen=True)
class Objection:
    """A reason not to publish, and the name by which somebody who knows better allows it."""

    name: str
    reason: str


class PublicationRefused(ValueError):
    """There are objections that nobody allowed; the message names them all."""


def find_objections(provenance: Provenance) -> list[Objection]:
    """What speaks against publishing: each failed smoke gate, each conflict of licences."""
    gates = [
        Objection(
            "gate", f"the smoke gate failed: {'; '.join(verdict.facts.get('reasons', ())) or verdict.ref.address}"
        )
        for verdict in provenance.verdicts
        if not verdict.facts.get("passed")
    ]
    conflicts = [finding for finding in provenance.licence_findings if finding.severity == "conflict"]
    return [*gates, *(Objection(f"licence:{f.subject}", f"{f.subject}: {f.reason}") for f in conflicts)]


def check_publishable(provenance: Provenance, allowed: Sequence[str] = ()) -> list[Objection]:
    """The objections that were allowed by name. Raises `PublicationRefused` for any other."""
    objections = find_objections(provenance)
    refused = [objection for objection in objections if objection.name not in allowed]
    if refused:
        reasons = "; ".join(objection.reason for objection in refused)
        names = " ".join(dict.fromkeys(f"--allow {objection.name}" for objection in refused))
        raise PublicationRefused(f"{provenance.name}: not published: {reasons}. Who may decide otherwise says {names}")
    return objections


def assemble(provenance: Provenance, store: Store, folder: Path, shard_bytes: int = SHARD_BYTES) -> dict[str, Path]:
    """The files to publish, by name, in an empty folder: the model as transformers reads it, its card, recipe, lineage.

    Weights that lie in a larger file than `shard_bytes` are cut anew; everything else is the model's own files, linked.
    A recipe's paths of this machine are shortened to their last part, and servers of models lose their address.
    """
    ref = provenance.manifest.ref
    assert isinstance(ref, ModelRef), f"{ref} is no model"
    source = store.fetch(ref)
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    names = [n for n in provenance.manifest.files if n in found and n not in (CARD, RECIPE, PROVENANCE, SUMS)]
    weights = [name for name in names if name.endswith(".safetensors")]
    too_large = any(provenance.manifest.files[name].bytes > shard_bytes for name in weights)
    for name in names:
        if not (too_large and ".safetensors" in name):  # the index too
            _link(source / name, folder / name, lasting=store.is_local)
    if too_large:
        _cut_weights(source, folder, str(ref), shard_bytes)
    (folder / CARD).write_text(write_card(provenance), encoding="utf-8")
    if provenance.recipe is not None:
        recipe = yaml.safe_dump(_shorten_paths(provenance.recipe), sort_keys=False, allow_unicode=True, width=110)
        (folder / RECIPE).write_text(recipe, encoding="utf-8")
    (folder / PROVENANCE).write_text(json.dumps(to_prov(provenance.made), indent=1), encoding="utf-8")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / SUMS).write_text("".join(f"{_sha256(path)}  {name}\n" for name, path in files.items()), encoding="utf-8")
    return files | {SUMS: folder / SUMS}


def _link(source: Path, target: Path, lasting: bool) -> None:
    """Another name for the file. One in a cache needs its own: the cache may let go of it during a long upload."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if lasting:
        target.symlink_to(source)
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without them
        shutil.copyfile(source, target)


def _cut_weights(source: Path, folder: Path, name: str, shard_bytes: int) -> None:
    with open_weights(source, name) as tensors:

        def stretches(tensor: str) -> Iterator[Tensor]:
            stored = tensors[tensor]
            for start in range(0, len(stored), STRETCH):
                yield stored[start : start + STRETCH]

        layouts = {tensor: stored.layout for tensor, stored in tensors.items()}
        write_weights(folder, layouts, stretches, shard_bytes)


def _shorten_paths(value: Any) -> Any:  # Any: a recipe's JSON
    """The same with this machine's folders and servers left out: they would tell of it and mean nothing elsewhere."""
    if isinstance(value, list | tuple):
        return [_shorten_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    shortened = {key: _shorten_paths(item) for key, item in value.items()}
    if value.get("kind") == "local":
        shortened["path"] = PurePosixPath(str(value["path"])).name
    if value.get("kind") == "files":
        shortened["paths"] = [PurePosixPath(str(path)).name for path in value["paths"]]
    if value.get("kind") == "endpoint":
        shortened = {key: item for key, item in shortened.items() if key not in ("url", "key_variable")}
    return shortened


def read_sums(text: bytes | None) -> set[str]:
    """The names of the files that a publication's `SHA256SUMS` lists, and its own; empty without one.

    Somebody else may have written it: the names can be anything.
    """
    if text is None:
        return set()
    lines = text.decode("utf-8", errors="replace").splitlines()
    return {SUMS, *(name for _, separator, name in (line.partition("  ") for line in lines) if separator)}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
