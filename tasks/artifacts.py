"""What steps hand to each other: refs, the runtime they run under, and the manifest that commits a result.

A `Ref` is an address, small enough for a Prefect parameter and free of any root: the same recipe on a
laptop's disk and in a bucket gives the same refs. A `Manifest` is the commit mark of one artifact and
everything that lineage needs. `Runtime` says where and how things run, and is never part of an identity.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from fusion_core.spec import LATER, PINNED, Spec
from tasks.runtime import Runtime as Runtime
from tasks.sealed import is_intact, seal

SCHEMA_VERSION = 1
"""Of manifests and data files. Readers accept this and older ones, and refuse newer ones by name."""


_NAME = r"^[A-Za-z0-9_-]+$"  # whoever can write to a store must not be able to name a place outside an artifact


class Ref(Spec):
    """The address of one artifact: the step that made it and the fingerprint of everything that went in."""

    step: str = Field(pattern=_NAME)
    fingerprint: str = Field(pattern=_NAME)

    @property
    def address(self) -> str:
        """The folder below the store's root."""
        return f"{self.step}/{self.fingerprint}"

    @property
    def identity(self) -> str:
        """What enters the fingerprints of artifacts made from this one."""
        return self.fingerprint

    def __str__(self) -> str:
        return f"{self.step}/{self.fingerprint[:12]}"


class ModelRef(Ref):
    """A Hugging Face model folder: config, tokenizer and safetensors weights."""

    kind: Literal["model"] = "model"


class TokenizerRef(Ref):
    """A Hugging Face tokenizer folder."""

    kind: Literal["tokenizer"] = "tokenizer"


class TextsRef(Ref):
    """Documents as Parquet, one file per split, before they are cut and sharded."""

    kind: Literal["texts"] = "texts"


class CorpusRef(Ref):
    """A corpus cut into shards; `num_shards` is 0 while it has not been built (in a plan)."""

    kind: Literal["corpus"] = "corpus"
    num_shards: int = 0


class ShardRef(Ref):
    """One shard of a corpus. Its identity is its content: the same texts in another corpus are the same shard."""

    kind: Literal["shard"] = "shard"
    index: int
    digest: str

    @property
    def identity(self) -> str:
        """The digest of the shard's content."""
        return self.digest


class ScoredRef(Ref):
    """One model's distributions over one shard."""

    kind: Literal["scored"] = "scored"


class CountsRef(Ref):
    """How often the target's tokens stood in the place of one source's, over one shard."""

    kind: Literal["counts"] = "counts"


class VocabMapRef(Ref):
    """The map from one source's vocabulary to the target's."""

    kind: Literal["vocab_map"] = "vocab_map"


class AlignedRef(Ref):
    """One source's distributions over one shard, on the target's tokens and vocabulary."""

    kind: Literal["aligned"] = "aligned"


class FusedRef(Ref):
    """The teacher over one shard."""

    kind: Literal["fused"] = "fused"


class EvaluationRef(Ref):
    """One model's cost per document of the evaluation corpus."""

    kind: Literal["evaluation"] = "evaluation"


class TaskScoresRef(Ref):
    """What one model earned on one entry of a list of tasks."""

    kind: Literal["task_scores"] = "task_scores"


class ProbeRef(Ref):
    """What one model wrote by itself after held-out prompts, and what is wrong with it."""

    kind: Literal["probe"] = "probe"


class VerdictRef(Ref):
    """Whether a trained model passed its smoke gate, and why not."""

    kind: Literal["verdict"] = "verdict"


class ReportRef(Ref):
    """The comparison table and the HTML page."""

    kind: Literal["report"] = "report"


class InspectionRef(Ref):
    """What can be told of a fusion before it is run, as JSON; of a whole recipe also as a page."""

    kind: Literal["inspection"] = "inspection"


AnyRef = Annotated[
    ModelRef
    | TokenizerRef
    | TextsRef
    | CorpusRef
    | ShardRef
    | ScoredRef
    | CountsRef
    | VocabMapRef
    | AlignedRef
    | FusedRef
    | EvaluationRef
    | TaskScoresRef
    | ProbeRef
    | VerdictRef
    | ReportRef
    | InspectionRef,
    Field(discriminator="kind"),
]


class FileFact(BaseModel):
    """One data file of an artifact: where it lies below the artifact's folder, and what it must contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int = Field(ge=0)
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_below(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or "//" in path or ".." in parts or "\\" in path or "\0" in path:
            raise ValueError(f"expected a path below the artifact's folder, found {path!r}")
        return path


class Manifest(BaseModel):
    """The commit mark of one artifact, written last and only once, with everything that lineage needs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    step: str
    version: int
    fingerprint: str
    label: str = ""
    ref: AnyRef
    arguments: dict[str, Any]  # the canonical JSON of specs and inputs, defaults included
    pins: dict[str, Any] = {}  # what the world was found to be: a commit, a digest of local files
    inputs: list[AnyRef] = []
    files: dict[str, FileFact] = {}
    facts: dict[str, Any] = {}  # counts and measures of this step; plain JSON
    owner: str = Field(pattern=_NAME)  # the attempt that committed
    started_at: str
    seconds: float
    environment: dict[str, Any] = {}
    flow_run_id: str | None = None
    task_run_id: str | None = None

    @property
    def total_bytes(self) -> int:
        """The size of all data files."""
        return sum(f.bytes for f in self.files.values())

    def to_json(self) -> bytes:
        """The manifest as it is stored."""
        return seal(self.model_dump_json(indent=1))

    @classmethod
    def from_json(cls, data: bytes, address: str) -> Self:
        """The manifest; raises `StoreError` when it is torn or was written by a newer release."""
        try:
            found = json.loads(data).get("schema_version")
        except (ValueError, AttributeError, RecursionError) as error:
            raise StoreError(f"{address}: the manifest is not a JSON object; delete the folder to recompute") from error
        if not isinstance(found, int) or found > SCHEMA_VERSION:
            raise StoreError(
                f"{address}: expected a manifest of schema {SCHEMA_VERSION} or older, found {found}; upgrade llm-fuse"
            )
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise StoreError(
                f"{address}: the manifest's {where!r} is not valid ({first['msg']}); delete the folder to recompute"
            ) from error
        if not is_intact(data):
            raise StoreError(f"{address}: the manifest differs from its seal; delete the folder to recompute")
        if manifest.ref.address != address:
            raise StoreError(
                f"{address}: expected its own manifest, found one of {manifest.ref.address}; delete the folder"
            )
        return manifest


class StoreError(Exception):
    """The store can't be used, or holds something that must not be used; the message is for users."""


def canonical_json(value: object) -> str:
    """The one stable JSON text of a spec, a ref (by its identity) or plain data.

    Raises `TypeError` for anything whose form isn't stable between processes: sets, callables, paths,
    NaN and infinities, objects that are neither specs nor refs.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(value: object) -> object:
    if isinstance(value, Ref):
        return {"ref": value.identity}
    if isinstance(value, Spec):
        fields = [(name, getattr(value, name), field) for name, field in type(value).model_fields.items()]
        return {name: _canonical(item) for name, item, field in fields if _is_identity(item, field)}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a fingerprint takes dictionaries with string keys, found {list(value)[:3]}")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"a fingerprint takes numbers with a JSON form, found {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a fingerprint takes specs, refs and plain data, found {type(value).__name__}: give it a Spec")


def _is_identity(value: object, field: FieldInfo) -> bool:
    return PINNED not in field.metadata and not (LATER in field.metadata and value == field.default)


def refs_in(value: object) -> Iterator[Ref]:
    """Every ref in a step's arguments, those inside specs, lists and dictionaries included, in order."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Spec):
        for name in type(value).model_fields:
            yield from refs_in(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from refs_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)


def fingerprint_of(step: str, version: int, arguments: dict[str, object], pins: dict[str, object]) -> str:
    """32 hex digits of SHA-256 over the step, its version, its semantic arguments and what the world was pinned to."""
    text = canonical_json({"step": step, "version": version, "arguments": arguments, "pins": pins})
    return hashlib.sha256(text.encode()).hexdigest()[:32]
