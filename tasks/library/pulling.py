"""Pulling: an artifact of another root comes into this store, checked, with the record of everything behind it."""

import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from fusion_core.spec import check_name
from tasks.artifacts import Manifest, Ref, Runtime, StoreError
from tasks.library.lineage import RunRecord, note_elsewhere, read_known, record_run
from tasks.secrets import refuse_credentials
from tasks.storage.claims import Claims
from tasks.storage.store import Store, open_store

_URI = re.compile(r"(?P<root>.+?)/+(?P<step>[a-z][a-z0-9_]*)/(?P<fingerprint>[0-9a-f]{32})(/.*)?")
Report = Callable[[str, int], None]
"""Called with an artifact's name and its bytes once it is here."""


@dataclass(frozen=True)
class Pulled:
    """What came: the artifact, what was copied for it (itself last), and of what only the record came."""

    ref: Ref
    copied: tuple[Ref, ...]
    recorded: tuple[Ref, ...]


def parse_uri(uri: str) -> tuple[str, Ref]:
    """The root and the artifact that `ROOT/step/fingerprint` names, or a path into it. Raises ValueError."""
    match = _URI.fullmatch(refuse_credentials(uri.strip()))
    if match is None:
        raise ValueError(
            f"expected ROOT/step/fingerprint with its 32 hex digits, found {uri!r}; llm-fuse lineage shows it"
        )
    return match["root"], Ref(step=match["step"], fingerprint=match["fingerprint"])


def pull(
    uri: str,
    runtime: Runtime,
    *,
    with_inputs: bool = False,
    trust_code: bool = False,
    report: Report = lambda name, size: None,
) -> Pulled:
    """Copies an artifact from the root in its URI into the runtime's store; what is here already isn't copied again.

    Every file's size and SHA-256 is checked on the way. Of its ancestors the manifests come as records: lineage reads
    them, and no step takes them for results. The artifact is kept from garbage collection.

    Args:
        with_inputs: copy the ancestors too, data and all, as far as that root holds them.
        trust_code: take artifacts with Python files: they run when such a model is loaded.

    Raises:
        ValueError: no such URI, or Python files without `trust_code`.
        StoreError: no such artifact there, a file that differs from its manifest, or a manifest of odd names.
        OSError: the connection failed, or somebody computes the artifact here right now.
    """
    root, ref = parse_uri(uri)
    source, store = open_store(runtime.model_copy(update={"root": root})), open_store(runtime)
    manifest = source.manifest(ref)
    if manifest is None:
        raise StoreError(f"{uri}: expected an artifact, found none in {root}; check the address")
    ancestors = _ancestors(source, manifest)
    present = [m for m in ancestors if with_inputs and source.manifest(m.ref) is not None]
    wanted = [*reversed(present), manifest]  # what others are made from comes before them
    for each in (manifest, *ancestors):
        _check_words(each)
    for each in wanted:
        _check_code(each, uri, trust_code)
    copied = {each.ref.address for each in wanted}
    recorded = [each for each in ancestors if each.ref.address not in copied and store.manifest(each.ref) is None]
    for each in recorded:
        note_elsewhere(store, each)
    for each in wanted:
        if _copy(source, store, each, runtime.lease_seconds):
            report(each.label or str(each.ref), each.total_bytes)
    record = RunRecord(
        name=f"pulled from {root}",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe={},
        refs=[manifest.ref],
        pinned=True,
    )
    record_run(store, record, run_id=f"pulled-{ref.fingerprint[:16]}")
    return Pulled(manifest.ref, tuple(m.ref for m in wanted), tuple(m.ref for m in recorded))


def _ancestors(source: Store, manifest: Manifest) -> list[Manifest]:
    """The manifests of what it was made from, nearest first; what that root knows nothing of is left out."""
    found: dict[str, Manifest] = {}
    layer: Iterable[Ref] = manifest.inputs
    while layer := {ref.address: ref for ref in layer if ref.address not in found}.values():
        known = [m for ref in layer if (m := read_known(source, ref)) is not None]
        found |= {m.ref.address: m for m in known}
        layer = [ref for m in known for ref in m.inputs]
    return list(found.values())


def _check_words(manifest: Manifest) -> None:
    """Raises `StoreError` for file names that lead out of the artifact, or a label that a terminal would obey."""
    odd = next((n for n, fact in manifest.files.items() if fact.path != f"{manifest.owner}/{n}"), None)
    if odd is not None:
        raise StoreError(f"{manifest.ref}: expected each file below its attempt's folder, found {odd!r}; don't pull it")
    try:
        check_name(manifest.label)
    except ValueError as error:
        raise StoreError(f"{manifest.ref}: its label: {error}") from error


def _check_code(manifest: Manifest, uri: str, trusted: bool) -> None:
    code = next((name for name in manifest.files if name.endswith(".py")), None)
    if code is not None and not trusted:
        raise ValueError(
            f"{uri}: expected data alone, found {code} in {manifest.ref}, which would run when the model is loaded; "
            "if you trust whoever wrote it, say --trust-code"
        )


def _copy(source: Store, store: Store, manifest: Manifest, lease_seconds: float) -> bool:
    """Whether it had to be copied."""
    address, owner = manifest.ref.address, uuid.uuid4().hex[:12]
    if store.manifest(manifest.ref) is not None:
        return False
    claims = Claims(store, address, owner, lease_seconds, [ref.address for ref in manifest.inputs])
    claim = claims.acquire_from_silent()
    if claim is None:
        raise OSError(f"{address}: expected nobody at work on it in {store.root}, found a claim; pull again later")
    with claim:
        folder = source.fetch(manifest.ref)
        scratch = store.scratch(address, owner)
        try:
            for name in manifest.files:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, scratch / name)
            files = store.upload(scratch, address, owner)
            if any(files[name].sha256 != fact.sha256 for name, fact in manifest.files.items()):
                raise StoreError(f"{address}: its files changed while they were copied from {source.root}; pull again")
        except BaseException:
            store.discard(scratch, address, owner)
            raise
        store.commit(manifest.model_copy(update={"owner": owner, "files": files}), scratch)
    return True
