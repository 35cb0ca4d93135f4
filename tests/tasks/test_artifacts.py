"""Refs, canonical JSON and fingerprints: the same for the same thing, whoever asks, and never by accident."""

import datetime
import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError, create_model

from fusion_core.spec import LATER, Spec
from tasks.artifacts import (
    AnyRef,
    CorpusRef,
    FileFact,
    Manifest,
    ModelRef,
    Ref,
    Runtime,
    ScoredRef,
    ShardRef,
    StoreError,
    canonical_json,
    fingerprint_of,
    refs_in,
)
from tasks.sealed import seal

MODEL = ModelRef(step="download", fingerprint="a" * 32)
SHARD = ShardRef(step="corpus", fingerprint="b" * 32, index=3, digest="d" * 32)


class Sharp(Spec):
    kind: Literal["sharp"] = "sharp"
    temperature: float = 1.0


class Flat(Spec):
    kind: Literal["flat"] = "flat"


class Choice(Spec):
    how: Annotated[Sharp | Flat, Field(discriminator="kind")] = Sharp()
    weights: tuple[float, ...] = (1.0, 2.0)
    model: ModelRef | None = None


def test_dictionary_order_is_irrelevant() -> None:
    assert canonical_json({"a": 1, "b": {"c": 2, "d": 3}}) == canonical_json({"b": {"d": 3, "c": 2}, "a": 1})


def test_a_field_that_came_later_is_part_of_the_identity_only_where_it_is_set() -> None:
    class Newer(Sharp):
        smooth: Annotated[bool, LATER] = False

    assert canonical_json(Newer()) == canonical_json(Sharp())
    assert canonical_json(Newer(smooth=True)) == '{"kind":"sharp","smooth":true,"temperature":1.0}'


def test_canonical_json_is_what_it_was() -> None:
    assert canonical_json({"spec": Choice(model=MODEL), "shard": SHARD, "text": "é"}) == (
        '{"shard":{"ref":"' + "d" * 32 + '"},"spec":{"how":{"kind":"sharp","temperature":1.0},'
        '"model":{"ref":"' + "a" * 32 + '"},"weights":[1.0,2.0]},"text":"é"}'
    )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("abé\n\"'"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
)


@given(JSON_VALUES)
def test_plain_data_survives_canonical_json(value: object) -> None:
    assert TypeAdapter(object).validate_json(canonical_json(value)) == value


@pytest.mark.parametrize(
    "value",
    [{1, 2}, frozenset("a"), print, lambda: 0, Path("x"), b"x", object(), datetime.date(2026, 1, 1), 1j, Runtime()],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_stable_form_raises(value: object) -> None:
    for nested in (value, [value], {"a": {"b": value}}):
        with pytest.raises(TypeError, match="a fingerprint takes specs, refs and plain data, found"):
            canonical_json(nested)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_without_json_raise(value: float) -> None:
    with pytest.raises(TypeError, match="numbers with a JSON form"):
        canonical_json({"loss": value})


def test_keys_must_be_strings() -> None:
    with pytest.raises(TypeError, match="string keys"):
        canonical_json({1: "a"})


def test_moving_a_class_does_not_change_a_fingerprint() -> None:
    moved = create_model(
        "Renamed", __base__=Spec, __module__="elsewhere", kind=(str, "sharp"), temperature=(float, 1.0)
    )
    assert canonical_json(moved()) == canonical_json(Sharp())


def test_everything_but_the_runtime_enters_a_fingerprint() -> None:
    def mark(step: str = "fuse", version: int = 1, spec: Spec = Sharp(), pin: str = "commit") -> str:
        return fingerprint_of(step, version, {"spec": spec}, {"pin": pin})

    different = [mark(), mark(step="align"), mark(version=2), mark(spec=Sharp(temperature=2.0)), mark(pin="other")]
    assert len({*different, mark(spec=Flat())}) == 6
    assert mark() == mark()
    assert len(mark()) == 32


def test_a_shard_is_its_content_and_a_corpus_is_not() -> None:
    elsewhere = ShardRef(step="corpus", fingerprint="c" * 32, index=0, digest=SHARD.digest)
    assert canonical_json(elsewhere) == canonical_json(SHARD)
    assert elsewhere.address != SHARD.address
    corpora = [CorpusRef(step="corpus", fingerprint=letter * 32, num_shards=2) for letter in "bc"]
    assert canonical_json(corpora[0]) != canonical_json(corpora[1])
    unbuilt = CorpusRef(step="corpus", fingerprint="b" * 32)
    assert canonical_json(unbuilt) == canonical_json(corpora[0])


def test_refs_are_found_wherever_arguments_hold_them() -> None:
    arguments = {"a": MODEL, "b": [SHARD, {"c": (MODEL,)}], "spec": Choice(model=MODEL), "n": 3}
    assert list(refs_in(arguments)) == [MODEL, SHARD, MODEL, MODEL]


@pytest.mark.parametrize("ref", [MODEL, SHARD, ScoredRef(step="extract", fingerprint="e" * 32)])
def test_a_ref_comes_back_from_json_as_its_own_kind(ref: Ref) -> None:
    back: Ref = TypeAdapter(AnyRef).validate_json(ref.model_dump_json())
    assert back == ref
    assert type(back) is type(ref)


def test_an_unknown_kind_of_ref_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        TypeAdapter(AnyRef).validate_python({"kind": "surprise", "step": "x", "fingerprint": "y"})


def test_a_manifest_survives_its_json() -> None:
    manifest = Manifest(
        step="download",
        version=1,
        fingerprint="a" * 32,
        ref=MODEL,
        arguments={"id": "m"},
        inputs=[SHARD],
        owner="o",
        started_at="2026-01-01T00:00:00+00:00",
        seconds=0.5,
        facts={"rows": 3},
    )
    address = manifest.ref.address
    assert Manifest.from_json(manifest.to_json(), address) == manifest
    newer = seal(manifest.model_dump_json(indent=1).replace('"step"', '"news": 1, "step"', 1))
    assert Manifest.from_json(newer, address) == manifest
    assert Manifest.from_json(manifest.model_dump_json().encode(), address) == manifest  # of before there were seals


def test_a_manifest_that_changed_in_one_byte_is_refused_or_says_the_same() -> None:
    manifest = Manifest(
        step="download", version=1, fingerprint="a" * 32, ref=MODEL, arguments={}, owner="o", started_at="",
        seconds=0.5, files={"data": FileFact(path="o/data", bytes=3, sha256="0" * 64)}, facts={"rows": 3},
    )  # fmt: skip
    data = manifest.to_json()
    refused = 0
    for place in range(len(data)):
        for bit in (1, 2, 32):
            changed = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            try:
                assert Manifest.from_json(changed, manifest.ref.address) == manifest
            except StoreError:
                refused += 1
    assert refused > 2.5 * len(data)


def test_a_manifest_at_another_artifacts_address_is_refused() -> None:
    manifest = Manifest(
        step="download", version=1, fingerprint="a" * 32, ref=MODEL, arguments={}, owner="o", started_at="", seconds=0.5
    )
    with pytest.raises(StoreError, match="download/bbb: expected its own manifest, found one of download/"):
        Manifest.from_json(manifest.to_json(), "download/bbb")


@pytest.mark.parametrize("path", ["/etc/passwd", "../../other/file", "a/../../b", "a\\..\\b", "a\0b"])
def test_a_file_outside_its_artifact_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="expected a path below the artifact's folder"):
        FileFact(path=path, bytes=1, sha256="0" * 64)


@pytest.mark.parametrize("name", ["..", "a/b", "", "a b"])
def test_a_ref_names_no_place_outside_its_root(name: str) -> None:
    with pytest.raises(ValidationError):
        ModelRef(step="download", fingerprint=name)
