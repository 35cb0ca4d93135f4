"""Whatever bytes a store or a model's folder holds: they are read or refused, with no more memory than they have."""

import contextlib
import json
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError, validate
from pydantic import TypeAdapter

from fusion_core.alignment import Pair
from fusion_core.pair_counts import PairCounts
from fusion_core.types import Aligned, Fused, Scored, TokenDist, Tokens, VocabMap
from fusion_core.vocabulary import Vocabulary
from tasks.artifacts import Manifest, ModelRef, StoreError
from tasks.formats import shards
from tasks.models.weight_files import check_weights
from tasks.secrets import HIDDEN, Address, redact, refuse_credentials

FUZZ = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MOST = 100_000
"""Kilobytes that reading a file of some hundred bytes may take: imports on the way, and no claimed size."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST


def edited(data: bytes, at: int, cut: int, put: bytes) -> bytes:
    place = at % (len(data) + 1)
    return data[:place] + put + data[place + cut :]


edits = st.tuples(st.integers(0, 10**6), st.integers(0, 30), st.binary(max_size=12))

# ---- manifests ------------------------------------------------------------------------------------------------

REF = ModelRef(step="download", fingerprint="a" * 32)
WHOLE = Manifest(
    step="download", version=1, fingerprint="a" * 32, ref=REF, arguments={"spec": {"kind": "hub"}}, inputs=[REF],
    files={"x": {"path": "me/x", "bytes": 1, "sha256": "0" * 64}},  # type: ignore[dict-item]
    owner="me", started_at="", seconds=0.0,
)  # fmt: skip


def read_manifest(data: bytes) -> None:
    with little_memory(), contextlib.suppress(StoreError):
        found = Manifest.from_json(data, REF.address)
        assert found.ref.address == REF.address
        assert all(".." not in fact.path and not fact.path.startswith("/") for fact in found.files.values())


@FUZZ
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    read_manifest(data)


@FUZZ
@given(edits)
def test_any_edit_of_a_manifest_is_read_or_refused(edit: tuple[int, int, bytes]) -> None:
    read_manifest(edited(WHOLE.to_json(), *edit))


@FUZZ
@given(field=st.sampled_from([*Manifest.model_fields]), value=json_values)
def test_any_value_of_a_manifests_field_is_read_or_refused(field: str, value: object) -> None:
    read_manifest(json.dumps(json.loads(WHOLE.to_json()) | {field: value}).encode())


# ---- shards ---------------------------------------------------------------------------------------------------

TOKENS = Tokens(torch.tensor([0, 2, 3, 1]), torch.tensor([0, 1, 2, -1]), torch.tensor([0, 4]))
DIST = TokenDist(
    torch.tensor([0, 1, 2, 3, 3]), torch.tensor([2, 3, 1]), torch.full((3,), -0.7), torch.full((4,), -0.7),
    torch.full((4,), -torch.inf), 4,
)  # fmt: skip
NLL = torch.ones(4)
MANY = 300
MANY_TOKENS = Tokens(torch.arange(MANY) % 7, torch.arange(MANY), torch.tensor([0, MANY]))
MANY_ROWS = TokenDist(
    torch.arange(MANY + 1), torch.arange(MANY) % 7, -(torch.arange(MANY) % 9) / 8 - 0.5, torch.full((MANY,), -0.7),
    torch.full((MANY,), -torch.inf), 1000,
)  # fmt: skip
VOCABULARY = Vocabulary((b"", b"", b"a", b"b"), {"bos": 0, "eos": 1}, False, False, ("<s>", "</s>", "a", "b"))
PAIR = Pair(VOCABULARY, VOCABULARY, VocabMap(torch.arange(4), 4), lambda texts: [[2] for _ in texts])
Kind = tuple[str, Callable[[Path], None], Callable[[Path], object]]
KINDS: list[Kind] = [
    (shards.SCORED, lambda f: shards.write_scored(f, Scored(TOKENS, DIST, NLL)), shards.read_scored),
    (
        shards.SCORED,
        lambda f: shards.write_scored(f, Scored(MANY_TOKENS, MANY_ROWS, torch.ones(MANY)), compress=True),
        shards.read_scored,
    ),
    (shards.ALIGNED, lambda f: shards.write_aligned(f, Aligned(DIST, NLL, torch.ones(4).long())), shards.read_aligned),
    (shards.FUSED, lambda f: shards.write_fused(f, Fused(DIST, torch.zeros(4).long())), shards.read_fused),
    (shards.FUSED, lambda f: shards.write_fused(f, Fused(DIST, torch.zeros(4).long())), shards.FusedRows),
    (shards.COUNTS, lambda f: shards.write_counts(f, PairCounts(*torch.ones(3, 2).long())), shards.read_counts),
    (shards.VOCAB_MAP, lambda f: shards.write_pair(f, PAIR, "{}"), shards.read_pair),
]
kinds = st.sampled_from(KINDS)
sizes = st.lists(st.integers(-(2**63), 2**64), max_size=3)
claims = json_values | sizes | st.sampled_from(["F64", "I64", "U8", "BOOL", "BF16"])


def read_shard(kind: Kind, folder: Path, data: bytes) -> None:
    name, _, read = kind
    (folder / name).write_bytes(data)
    with little_memory(), contextlib.suppress(StoreError):
        read(folder)
    with contextlib.suppress(ValueError):
        (folder / name).rename(folder / "model.safetensors")
        check_weights(folder, "model x", rows=1, layers=1)


def written(kind: Kind, folder: Path) -> bytes:
    name, write, _ = kind
    write(folder)
    return (folder / name).read_bytes()


@FUZZ
@given(kind=kinds, edit=edits)
def test_any_edit_of_a_shard_is_read_or_refused(tmp_path: Path, kind: Kind, edit: tuple[int, int, bytes]) -> None:
    read_shard(kind, tmp_path, edited(written(kind, tmp_path), *edit))


@FUZZ
@given(kind=kinds, tensor=st.integers(0, 20), key=st.sampled_from(["dtype", "shape", "data_offsets"]), value=claims)
def test_any_claim_of_a_header_is_true_or_refused(
    tmp_path: Path, kind: Kind, tensor: int, key: str, value: object
) -> None:
    data = written(kind, tmp_path)
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    header[names[tensor % len(names)]][key] = value
    text = json.dumps(header).encode()
    read_shard(kind, tmp_path, struct.pack("<Q", len(text)) + text + data[8 + length :])


@FUZZ
@given(kind=kinds, told=json_values | st.builds(lambda v: {"schema_version": v, "vocab_size": v}, json_values))
def test_any_header_of_ours_is_read_or_refused(tmp_path: Path, kind: Kind, told: object) -> None:
    data = written(kind, tmp_path)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": {"llm_fuse": json.dumps(told)}}
    text = json.dumps(header).encode()
    read_shard(kind, tmp_path, struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_what_no_edit_touched_is_read(tmp_path: Path) -> None:
    for kind in KINDS[:-1]:
        written(kind, tmp_path)
        kind[2](tmp_path)


# ---- secrets --------------------------------------------------------------------------------------------------


@FUZZ
@given(st.text("ab:/@?&=.-#[]%", max_size=30), st.sampled_from(["s3", "https", "postgresql+asyncpg"]))
def test_a_password_never_survives(rest: str, scheme: str) -> None:
    url = f"{scheme}://me:opensesame@host/{rest}"
    with pytest.raises(ValueError, match="expected an address without credentials") as refusal:
        refuse_credentials(url)
    assert "opensesame" not in str(refusal.value)
    told = redact(f"can't connect to {url}: refused")
    assert "opensesame" not in told
    assert HIDDEN in told


KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIAIOSFODNN7EXAMPLE:{KEY}@bucket/p",
        f"simplecache::s3://me:{KEY}@bucket/p",
        f"https://me@tenant:{KEY}@host:8080/a@b",
        f"redis://:{KEY}@host",
        f"postgresql://u:p@{KEY}@db",
        f"postgresql://u:{KEY}?#@db",
        f"postgresql://u:5432{KEY}@db",
    ],
)
def test_a_password_may_hold_what_else_ends_a_login(url: str) -> None:
    with pytest.raises(ValueError, match="expected an address without credentials") as refusal:
        refuse_credentials(url)
    told = [str(refusal.value), redact(url), redact(f"can't open '{url}': refused")]
    assert not any(part in text for text in told for part in KEY.split("/"))
    with pytest.raises(ValidationError):
        validate(url, TypeAdapter(Address).json_schema())


ADDRESSES = [
    "s3://bucket/a@b",
    "s3://bucket/a:b@c",
    "/home/me@work/x",
    "a:b@c",
    "github://o:r@main/x",
    "https://h/?a=b",
    "https://host:8080/a@b",
    "http://[::1]:8080/a@b",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_without_credentials_pass(address: str) -> None:
    assert refuse_credentials(address) == address
    validate(address, TypeAdapter(Address).json_schema())
    if not address.startswith("github://"):
        assert redact(f"no '{address}', ask me@host") == f"no '{address}', ask me@host"
