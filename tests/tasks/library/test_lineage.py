"""Lineage: read from manifests alone, over stores that steps really wrote."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.artifacts import CorpusRef, FusedRef, ModelRef, Ref, Runtime, ScoredRef, ShardRef, StoreError
from tasks.library.lineage import Library, RunRecord, forget_run, record_run, runs
from tasks.step import Output, step
from tasks.storage.store import Store, open_store


@step(version=1)
def download(name: str, *, runtime: Runtime, out: Output) -> ModelRef:
    """A model."""
    (out.dir / "weights").write_text(name * 10)
    return out.ref(ModelRef)


@step(version=1)
def corpus(texts: list[str], *, runtime: Runtime, out: Output) -> CorpusRef:
    """A corpus of one shard per text."""
    for number, text in enumerate(texts):
        (out.dir / f"{number}.txt").write_text(text)
    return out.ref(CorpusRef, num_shards=len(texts))


@step(version=1)
def extract(model: ModelRef, shard: ShardRef, *, runtime: Runtime, out: Output) -> ScoredRef:
    """What a model says about a shard."""
    (out.dir / "scores").write_text(f"{model.fingerprint} {shard.digest}")
    return out.ref(ScoredRef)


@step(version=1)
def fuse(scored: list[ScoredRef], *, runtime: Runtime, out: Output) -> FusedRef:
    """A teacher."""
    (out.dir / "teacher").write_text("teacher")
    return out.ref(FusedRef)


@dataclass
class Run:
    """Two models, a corpus of two shards; the teacher of each shard."""

    models: list[ModelRef]
    corpus: CorpusRef
    shards: list[ShardRef]
    scored: list[list[ScoredRef]]
    teachers: list[FusedRef]


def run_pipeline(runtime: Runtime) -> Run:
    models = [download.fn(name, runtime=runtime) for name in ("llama", "neox")]
    texts = corpus.fn(["one", "two"], runtime=runtime)
    shards = [ShardRef(step="corpus", fingerprint=texts.fingerprint, index=i, digest=t) for i, t in enumerate("ab")]
    scored = [[extract.fn(model, shard, runtime=runtime) for model in models] for shard in shards]
    return Run(models, texts, shards, scored, [fuse.fn(refs, runtime=runtime) for refs in scored])


def addresses(refs: list[Ref]) -> set[str]:
    assert len({ref.address for ref in refs}) == len(refs)
    return {ref.address for ref in refs}


def test_ancestors_lead_back_to_corpus_and_models(runtime: Runtime) -> None:
    run = run_pipeline(runtime)
    library = Library.load(open_store(runtime))
    found = library.ancestors(run.teachers[0])
    assert addresses(found) == addresses([*run.scored[0], *run.models, run.corpus])
    assert addresses(found[:2]) == addresses([*run.scored[0]])
    assert run.corpus in found  # the corpus itself in place of its shard
    assert library.ancestors(run.models[0]) == []


def test_descendants_lead_forward_to_all_that_used_it(runtime: Runtime) -> None:
    run = run_pipeline(runtime)
    library = Library.load(open_store(runtime))
    used_first = [*run.scored[0], run.teachers[0]]
    assert addresses(library.descendants(run.shards[0])) == addresses([*used_first])
    assert addresses(library.descendants(run.corpus)) == addresses([*used_first, *run.scored[1], run.teachers[1]])
    assert addresses(library.descendants(run.models[1])) == addresses(
        [run.scored[0][1], run.scored[1][1], *run.teachers]
    )
    assert library.descendants(run.teachers[0]) == []


def test_a_shard_is_followed_by_its_content_into_every_corpus(runtime: Runtime) -> None:
    run = run_pipeline(runtime)
    elsewhere = ShardRef(step="corpus", fingerprint="9" * 32, index=7, digest=run.shards[0].digest)
    found = Library.load(open_store(runtime)).descendants(elsewhere)
    assert addresses(found) == addresses([*run.scored[0], run.teachers[0]])


def test_an_artifact_is_found_by_address_path_and_first_digits(runtime: Runtime) -> None:
    run = run_pipeline(runtime)
    store = open_store(runtime)
    library, ref = Library.load(store), run.corpus
    folder = store.fetch(ref)
    texts = [ref.address, str(ref), ref.fingerprint, ref.fingerprint[:20], f"{store.root}/{ref.address}/", str(folder)]
    for text in [*texts, f"{folder}/0.txt", f"  {ref.address}\n"]:
        assert library.find(text) == ref


def test_what_is_not_found_or_not_unique_lists_candidates(tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path))
    run = run_pipeline(runtime)
    library = Library.load(open_store(runtime))
    with pytest.raises(
        ValueError, match=r"'zzz': expected .* found none of 9 artifacts .*corpus, download, extract, fuse"
    ):
        library.find("zzz")
    with pytest.raises(ValueError, match="expected step/fingerprint"):
        library.find("")
    common = next(digit for digit in "0123456789abcdef" if _starting(library, digit) > 1)
    with pytest.raises(ValueError, match=rf"fits {_starting(library, common)} artifacts: .*; give more digits"):
        library.find(common)
    with pytest.raises(ValueError, match="expected step/fingerprint"):
        library.find(f"fuse/{run.corpus.fingerprint}")


def _starting(library: Library, digits: str) -> int:
    return sum(manifest.fingerprint.startswith(digits) for manifest in library.manifests.values())


def test_verify_finds_every_kind_of_damage(store: Store, runtime: Runtime) -> None:
    run = run_pipeline(runtime)
    assert Library.load(store).verify() == []
    path = next(path for path in store.listing() if path.startswith(run.models[0].address) and path.endswith("weights"))
    store.write(path, b"x" * 50)
    store.remove(next(p for p in store.listing() if p.startswith(run.scored[0][0].address) and p.endswith("scores")))
    neighbour = store.manifest(run.models[1])
    assert neighbour is not None
    store.withdraw(neighbour)
    library = Library.load(store)
    problems = sorted(library.verify([run.teachers[0]]))
    assert len(problems) == 3
    assert any(p.startswith(f"{run.models[0].address}/weights: expected sha256") for p in problems)
    assert f"{run.scored[0][0].address}/scores: missing" in problems
    assert f"{run.models[1].address}: not in {store.root}" in problems
    assert library.verify([run.corpus]) == []
    assert sorted(library.verify()) == problems


def test_manifests_that_cannot_be_read_are_all_named_beside_what_else_is_wrong(runtime: Runtime) -> None:
    run, store = run_pipeline(runtime), open_store(runtime)
    torn, newer, lost = run.scored[0][0], run.models[1], run.scored[1][0]
    store.write(f"{torn.address}/MANIFEST.json", b'{"schema_ver')
    store.write(f"{newer.address}/MANIFEST.json", b'{"schema_version": 99}')
    store.remove(next(p for p in store.listing() if p.startswith(lost.address) and p.endswith("scores")))
    library = Library.load(store)
    assert set(library.damaged) == {torn.address, newer.address}
    named = [torn.address, newer.address, lost.address]
    first, second, third = sorted(library.verify(), key=lambda problem: named.index(problem[: problem.index("/") + 33]))
    assert first.startswith(f"{torn.address}: the manifest is not a JSON object")
    assert second.endswith("found 99; upgrade llm-fuse")
    assert third == f"{lost.address}/scores: missing"
    assert library.verify([torn]) == [first]
    assert library.ancestors(lost), "the others are as they were"
    assert library.find(str(lost)) == lost
    with pytest.raises(StoreError, match="not a JSON object; delete the folder"):
        library.find(torn.address)


def test_foreign_files_are_no_artifacts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for path in ("notes/MANIFEST.json", f"UPPER/{'a' * 32}/MANIFEST.json", f"x/{'a' * 32}/deep/MANIFEST.json"):
        store.write(path, b"not ours")
    assert Library.load(store).manifests == {}


# ---- runs ----------------------------------------------------------------------------------------------


def make_record(name: str, started_at: str = "2026-01-01T00:00:00+00:00") -> RunRecord:
    ref = ShardRef(step="corpus", fingerprint="a" * 32, index=1, digest="d")
    return RunRecord(name=name, started_at=started_at, recipe={"seed": 1}, refs=[ref])


def test_runs_are_kept_in_the_order_of_their_start(store: Store) -> None:
    assert runs(store) == {}
    later, sooner = make_record("later", "2026-02-01T00:00:00+00:00"), make_record("sooner")
    record_run(store, later, run_id="id-1")
    record_run(store, sooner, run_id="id-2")
    assert list(runs(store).items()) == [("id-2", sooner), ("id-1", later)]
    record_run(store, make_record("renamed"), run_id="id-2")
    assert runs(store)["id-2"].name == "renamed"
    forget_run(store, "id-1")
    assert list(runs(store)) == ["id-2"]


@pytest.mark.parametrize("run_id", ["", "../escape", "a/b", ".hidden"])
def test_a_run_id_is_a_plain_name(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(ValueError, match="run id: expected letters"):
        record_run(Store(str(tmp_path)), make_record("x"), run_id=run_id)


def test_an_unreadable_record_stops_what_would_decide_on_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("runs/bad.json", b"{")
    with pytest.raises(StoreError, match=r"runs/bad\.json: expected the record of a run"):
        runs(store)


def test_a_record_that_changed_in_one_byte_keeps_nothing_else_alive(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    record_run(store, make_record("run"), run_id="id-1")
    stored = tmp_path / "runs/id-1.json"
    stored.write_bytes(stored.read_bytes().replace(b'"run"', b'"ran"'))
    with pytest.raises(StoreError, match=r"runs/id-1\.json: the record of a run differs from its seal"):
        runs(store)


def test_a_folder_deleted_by_hand_is_simply_not_there(tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path))
    run = run_pipeline(runtime)
    shutil.rmtree(tmp_path / run.corpus.address)
    library = Library.load(open_store(runtime))
    (missing,) = library.verify([run.teachers[0]])
    assert missing.startswith(run.corpus.address)
    with pytest.raises(ValueError, match="found none"):
        library.find(run.corpus.address)
