"""Provenance: what manifests alone tell of a model, over stores that steps really wrote."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.artifacts import CorpusRef, FusedRef, ModelRef, Runtime, ScoredRef, ShardRef, VerdictRef
from tasks.corpus import CorpusSpec, Files, HubDataset
from tasks.library.lineage import Library, RunRecord, record_run
from tasks.publishing.provenance import Provenance, read_provenance
from tasks.step import Output, step
from tasks.storage.store import open_store
from tests.tasks.conftest import Hub, Repository
from tests.tasks.report.conftest import build_run

COMMIT = "a" * 40


@step(version=1)
def download(id: str, licence: str | None, *, runtime: Runtime, out: Output) -> ModelRef:
    """A model of the hub."""
    (out.dir / "weights").write_text(id)
    out.facts |= {"source": "hub", "id": id, "commit": COMMIT, "licence": licence}
    return out.ref(ModelRef)


def pin_commits(spec: CorpusSpec, *, runtime: Runtime) -> dict[str, object]:
    return {
        str(n): COMMIT if isinstance(source, HubDataset) else ["0123456789abcdef"]
        for n, source in enumerate(spec.documents)
    }


@step(version=1, pin=pin_commits)
def build_corpus(spec: CorpusSpec, *, runtime: Runtime, out: Output) -> CorpusRef:
    """A corpus."""
    (out.dir / "shards").write_text("text")
    out.facts |= {"documents": 12, "bytes": 3456}
    return out.ref(CorpusRef, num_shards=1)


@step(version=1)
def extract(model: ModelRef, shard: ShardRef, *, runtime: Runtime, out: Output) -> ScoredRef:
    """What a model says about a shard."""
    (out.dir / "scores").write_text("scores")
    return out.ref(ScoredRef)


@step(version=1)
def fuse(scored: list[ScoredRef], *, runtime: Runtime, out: Output) -> FusedRef:
    """A teacher."""
    (out.dir / "teacher").write_text("teacher")
    return out.ref(FusedRef)


@step(version=1)
def train(
    model: ModelRef, shards: list[ShardRef], teachers: list[FusedRef], *, runtime: Runtime, out: Output
) -> ModelRef:
    """A pupil."""
    (out.dir / "weights").write_text("pupil")
    return out.ref(ModelRef)


@step(version=1)
def merge(models: list[ModelRef], *, runtime: Runtime, out: Output) -> ModelRef:
    """An average."""
    (out.dir / "weights").write_text("average")
    return out.ref(ModelRef)


@step(version=1)
def gate(model: ModelRef, passes: bool, *, runtime: Runtime, out: Output) -> VerdictRef:
    """A verdict."""
    (out.dir / "verdict").write_text("verdict")
    out.facts |= {"passed": passes, "reasons": [] if passes else ["it loops"]}
    return out.ref(VerdictRef)


@dataclass
class Bench:
    runtime: Runtime

    def model(self, name: str, licence: str | None = "apache-2.0") -> ModelRef:
        return download.fn(f"owner/{name}", licence, runtime=self.runtime, label=f"download {name}")

    def shard(self, *sources: HubDataset | Files) -> ShardRef:
        documents = sources or (Files(paths=("texts/*.txt",)),)
        made = build_corpus.fn(CorpusSpec(documents=documents), runtime=self.runtime, label="corpus")
        return ShardRef(step=made.step, fingerprint=made.fingerprint, index=0, digest=made.fingerprint)

    def fuse(self, target: ModelRef, sources: list[ModelRef], shard: ShardRef | None = None) -> ModelRef:
        shard = shard or self.shard()
        scored = [extract.fn(m, shard, runtime=self.runtime, label="extract") for m in (target, *sources)]
        teacher = fuse.fn(scored, runtime=self.runtime, label="fuse")
        return train.fn(target, [shard], [teacher], runtime=self.runtime, label="train pupil")

    def read(self, model: ModelRef) -> Provenance:
        return read_provenance(Library.load(open_store(self.runtime)), model)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Runtime(root=str(tmp_path)))


def parts(found: Provenance) -> list[tuple[str, str]]:
    return [(origin.name, origin.part) for origin in found.origins]


def test_a_pupil_comes_from_its_target_and_its_teachers(bench: Bench) -> None:
    target, a, b = (bench.model(name) for name in ("target", "a", "b"))
    found = bench.read(bench.fuse(target, [a, b]))
    assert parts(found) == [("target", "target"), ("a", "teacher"), ("b", "teacher")]
    first = found.origins[0]
    assert (first.id, first.commit, first.licence) == ("owner/target", COMMIT, "apache-2.0")
    assert found.name == "pupil"
    assert len(found.made) == 9
    assert found.recipe is None
    assert found.evaluated is None


def test_behind_a_model_that_was_made_here_stand_those_that_came_from_elsewhere(bench: Bench) -> None:
    base, teacher, old_teacher = (bench.model(name) for name in ("base", "teacher", "old-teacher"))
    target = bench.fuse(base, [old_teacher])
    found = bench.read(bench.fuse(target, [teacher]))
    assert parts(found) == [
        ("pupil", "target"),
        ("teacher", "teacher"),
        ("base", "target"),
        ("old-teacher", "teacher"),
    ]
    assert [o.is_made_here for o in found.origins] == [True, False, False, False]
    assert found.licence == "apache-2.0"


def test_a_merge_continues_all_its_parts(bench: Bench) -> None:
    a, b = bench.model("a"), bench.model("b")
    found = bench.read(merge.fn([a, b], runtime=bench.runtime, label="merge soup"))
    assert parts(found) == [("a", "merged"), ("b", "merged")]
    assert found.is_merge


def test_a_teacher_that_forbids_teaching_conflicts_however_far_behind(bench: Bench) -> None:
    llama, free = bench.model("llama", "llama2"), bench.model("free")
    middle = bench.fuse(bench.model("middle"), [llama])
    conflicts = [f for f in bench.read(bench.fuse(free, [middle])).licence_findings if f.severity == "conflict"]
    assert [f.subject for f in conflicts] == ["llama"]
    same = bench.read(bench.fuse(bench.model("other-llama", "llama2"), [llama]))
    assert [f for f in same.licence_findings if f.severity == "conflict"] == []


def test_a_model_made_here_is_not_asked_for_a_licence(bench: Bench) -> None:
    target = bench.fuse(bench.model("base"), [])
    assert bench.read(bench.fuse(target, [])).licence_findings == []


def test_data_sets_carry_their_commit_and_their_licence(bench: Bench, hub: Hub) -> None:
    hub.repositories["owner/data"] = Repository({COMMIT: {}}, {"main": COMMIT}, licence="cc-by-nd-4.0")
    shard = bench.shard(HubDataset(id="owner/data"), Files(paths=("texts/*.txt",)))
    found = bench.read(bench.fuse(bench.model("base"), [], shard))
    (data,) = found.data
    assert (data.name, data.count, data.bytes) == ("fusion text", 12, 3456)
    assert data.documents == (f"owner/data, train, at commit {COMMIT}", "1 text files (0123456789ab)")
    assert data.licences == {"owner/data": "cc-by-nd-4.0"}
    assert [f.severity for f in found.licence_findings] == ["conflict"]


def test_a_verdict_on_the_model_is_found(bench: Bench) -> None:
    model, other = bench.fuse(bench.model("base"), []), bench.model("other")
    gate.fn(model, False, runtime=bench.runtime)
    gate.fn(other, True, runtime=bench.runtime)
    assert [v.facts["passed"] for v in bench.read(model).verdicts] == [False]


def test_the_recipe_is_that_of_the_run_which_came_to_the_model(bench: Bench) -> None:
    model = bench.fuse(bench.model("base"), [])
    record = RunRecord(name="n", started_at="2026-01-01", recipe={"name": "mine", "target": {}}, refs=[model])
    record_run(open_store(bench.runtime), record, run_id="r")
    assert bench.read(model).recipe == {"name": "mine", "target": {}}
    assert bench.read(model).name == "mine"


def test_the_newest_report_on_the_model_says_how_it_does(tmp_path: Path) -> None:
    from tasks.report import report

    run = build_run(Runtime(root=str(tmp_path)))
    report.fn(**run.arguments, runtime=run.runtime, label="report")
    fused = next(row for row in run.rows if row.role == "fused")
    found = read_provenance(Library.load(open_store(run.runtime)), fused.model)
    assert found.evaluated is not None
    assert found.evaluated.comparison.fused.model == fused.model
    assert [c.source for c in found.evaluated.coverage] == ["neox", "llama", "mpt"]
    assert found.evaluated.wins is not None
    assert found.recipe == run.arguments["recipe"]
    assert [o.name for o in found.origins] == ["target-llama", "neox", "llama", "mpt"]


def test_what_is_no_model_is_refused_by_what_it_is(bench: Bench) -> None:
    shard = bench.shard()
    corpus = ModelRef(step=shard.step, fingerprint=shard.fingerprint)
    with pytest.raises(ValueError, match=r"expected a model in .*, found the result of build_corpus"):
        bench.read(corpus)
    with pytest.raises(ValueError, match="found nothing; llm-fuse run makes one"):
        bench.read(ModelRef(step="train", fingerprint="0" * 32))
