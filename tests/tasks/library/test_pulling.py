"""Pulling: what comes from another root is checked, and lineage is whole without its data."""

import json
import threading
from pathlib import Path

import pytest

from tasks.artifacts import FusedRef, ModelRef, Runtime, StoreError
from tasks.library.garbage import find_garbage
from tasks.library.lineage import Library, runs
from tasks.library.pulling import parse_uri, pull
from tasks.step import Output, step
from tasks.storage.claims import Claims
from tasks.storage.store import MANIFEST, Store, open_store
from tests.tasks.library.test_lineage import Run, download, run_pipeline


@step(version=1)
def download_with_code(*, runtime: Runtime, out: Output) -> ModelRef:
    """A model that brings code."""
    (out.dir / "modeling_own.py").write_text("print('hello')")
    return out.ref(ModelRef)


@pytest.fixture
def there(runtime: Runtime) -> Run:
    """What a colleague has: in a folder, in a bucket."""
    return run_pipeline(runtime)


@pytest.fixture
def here(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "here"), cache_dir=str(tmp_path / "cache"), lease_seconds=3.0)


def uri_of(runtime: Runtime, ref: ModelRef | FusedRef) -> str:
    return f"{runtime.root}/{ref.address}"


def test_an_artifact_comes_with_records_of_everything_behind_it(there: Run, runtime: Runtime, here: Runtime) -> None:
    teacher = there.teachers[0]
    done = pull(uri_of(runtime, teacher), here)
    store, source = open_store(here), Library.load(open_store(runtime))
    assert done.ref == teacher
    assert done.copied == (teacher,)
    library = Library.load(store)
    assert set(library.manifests) == {teacher.address}
    assert [r.address for r in library.ancestors(teacher)] == [r.address for r in source.ancestors(teacher)]
    assert library.descendants(there.models[0]) == [there.scored[0][0], teacher]
    assert library.verify() == []
    assert (store.fetch(teacher) / "teacher").read_text() == "teacher"
    assert store.manifest(there.scored[0][0]) is None, "a record is no result"


def test_with_inputs_everything_comes_and_is_a_hit(there: Run, runtime: Runtime, here: Runtime) -> None:
    done = pull(uri_of(runtime, there.teachers[0]), here, with_inputs=True)
    assert done.recorded == ()
    assert done.copied[-1] == there.teachers[0]
    library = Library.load(open_store(here))
    assert len(library.manifests) == 6
    assert library.verify() == []
    made = library.manifests[there.models[0].address].owner
    assert download.fn("llama", runtime=here) == there.models[0]
    assert Library.load(open_store(here)).manifests[there.models[0].address].owner == made


def test_pulled_again_nothing_changes_and_it_is_kept(there: Run, runtime: Runtime, here: Runtime) -> None:
    uri = uri_of(runtime, there.teachers[0])
    pull(uri, here)
    before = open_store(here).listing()
    told: list[str] = []
    pull(uri, here, report=lambda name, size: told.append(name))
    assert told == []
    assert {p: e.bytes for p, e in open_store(here).listing().items()} == {p: e.bytes for p, e in before.items()}
    (record,) = runs(open_store(here)).values()
    assert find_garbage(Library.load(open_store(here)), record.refs, min_age=0.0) == []


def test_what_was_pulled_can_be_pulled_on(there: Run, runtime: Runtime, here: Runtime, tmp_path: Path) -> None:
    pull(uri_of(runtime, there.teachers[0]), here)
    further = here.model_copy(update={"root": str(tmp_path / "further")})
    done = pull(uri_of(here, there.teachers[0]), further)
    assert len(done.recorded) == 5
    assert len(Library.load(open_store(further)).ancestors(there.teachers[0])) == 5


def test_a_damaged_file_is_refused_and_leaves_nothing(there: Run, runtime: Runtime, here: Runtime) -> None:
    source, teacher = open_store(runtime), there.teachers[0]
    path = next(p for p in source.listing() if p.startswith(teacher.address) and p.endswith("/teacher"))
    source.write(path, b"another")
    fresh = here.model_copy(update={"cache_dir": f"{here.cache_dir}-fresh"})
    with pytest.raises(StoreError, match="expected sha256"):
        pull(uri_of(runtime, teacher), fresh)
    assert [p for p in open_store(fresh).listing() if p.startswith("fuse/")] == []


def test_code_is_taken_only_from_whom_one_trusts(runtime: Runtime, here: Runtime) -> None:
    model = download_with_code.fn(runtime=runtime)
    with pytest.raises(ValueError, match=r"found modeling_own\.py in .* say --trust-code"):
        pull(uri_of(runtime, model), here)
    assert open_store(here).manifest(model) is None
    assert pull(uri_of(runtime, model), here, trust_code=True).ref == model


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ({"label": "model \x1b[2J"}, "expected a name of printable characters"),
        ({"files": "../../../../outside"}, r"expected each file below its attempt's folder, found '\.\./"),
    ],
)
def test_names_that_do_harm_are_refused(
    there: Run, runtime: Runtime, here: Runtime, harm: dict[str, str], message: str
) -> None:
    source, model = open_store(runtime), there.models[0]
    manifest = json.loads(source.read(f"{model.address}/{MANIFEST}") or b"")
    (fact,) = manifest["files"].values()
    manifest |= {"files": {harm["files"]: fact}} if "files" in harm else harm
    source.write(f"{model.address}/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(StoreError, match=message):
        pull(uri_of(runtime, model), here)
    assert open_store(here).listing() == {}


def test_a_uri_with_a_password_is_refused_without_it() -> None:
    with pytest.raises(ValueError, match=r"without credentials, found s3://\*\*\*@bucket"):
        parse_uri(f"s3://key:secret@bucket/train/{'a' * 32}")


def test_a_place_where_somebody_works_is_left_to_them(there: Run, runtime: Runtime, here: Runtime) -> None:
    teacher = there.teachers[0]
    store: Store = open_store(here)
    claim = Claims(store, teacher.address, "somebody", 60.0).acquire()
    assert claim is not None
    with claim, pytest.raises(OSError, match="found a claim; pull again later"):
        pull(uri_of(runtime, teacher), here)
    assert pull(uri_of(runtime, teacher), here).ref == teacher


def test_a_claim_of_the_dead_on_another_host_blocks_for_its_lease_alone(
    there: Run, runtime: Runtime, here: Runtime
) -> None:
    teacher, store = there.teachers[0], open_store(here)
    left = {"owner": "somebody", "host": "elsewhere", "pid": 1, "started": 0.0, "lease_seconds": 0.5, "inputs": []}
    store.write(f"{teacher.address}/CLAIM.000000", json.dumps(left).encode())
    assert pull(uri_of(runtime, teacher), here).ref == teacher
    assert store.manifest(teacher) is not None


def test_a_claim_renewed_on_another_host_is_left_to_its_owner(there: Run, runtime: Runtime, here: Runtime) -> None:
    teacher, store, ended = there.teachers[0], open_store(here), threading.Event()
    path = f"{teacher.address}/CLAIM.000000"
    said = {"owner": "somebody", "host": "elsewhere", "pid": 1, "started": 0.0, "lease_seconds": 5.0, "inputs": []}

    def renew() -> None:
        beats = 0
        while not ended.wait(0.2):
            beats += 1
            store.write(path, json.dumps(said | {"beats": beats}).encode())

    store.write(path, json.dumps(said).encode())
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(OSError, match="found a claim; pull again later"):
            pull(uri_of(runtime, teacher), here)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        (f"s3://bucket/prefix/train/{'a' * 32}", "s3://bucket/prefix"),
        (f"/srv/store/train/{'a' * 32}/owner/model.safetensors", "/srv/store"),
        (f"./.llm-fuse//train/{'a' * 32}/", "./.llm-fuse"),
    ],
)
def test_a_uri_is_a_root_and_an_address(uri: str, root: str) -> None:
    found, ref = parse_uri(uri)
    assert (found, ref.address) == (root, f"train/{'a' * 32}")


@pytest.mark.parametrize("uri", ["", "train/abc", f"train/{'a' * 32}", f"s3://bucket/train/{'a' * 31}"])
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="expected ROOT/step/fingerprint"):
        parse_uri(uri)


def test_what_is_not_there_is_said(runtime: Runtime, here: Runtime) -> None:
    with pytest.raises(StoreError, match="expected an artifact, found none in"):
        pull(f"{runtime.root}/train/{'a' * 32}", here)
