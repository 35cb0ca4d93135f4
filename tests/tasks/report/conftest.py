"""A small run in a store: real manifests and refs, from toy steps with the names and facts of the real ones."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion_core.spec import Spec
from tasks.artifacts import (
    AlignedRef,
    CorpusRef,
    EvaluationRef,
    FusedRef,
    ModelRef,
    Runtime,
    ScoredRef,
    ShardRef,
    TextsRef,
    VocabMapRef,
)
from tasks.report import ReportRow
from tasks.step import Output, step

SOURCES = ["neox", "llama", "mpt"]
DOMAINS = ["code", "prose", "cpp"]
SHARDS = 3
DOCUMENTS = 40  # per domain


class Divergence(Spec):
    kind: str = "soft_cross_entropy"


class Objective(Spec):
    lm_weight: float = 1.0
    divergence: Divergence = Divergence()
    epochs: float = 2.0
    learning_rate: float = 1e-3
    seed: int = 0


class Quality(Spec):
    """Bits per byte per domain that a model is to have, before the noise of its documents."""

    bits: tuple[float, ...]
    noise: int = 0


@step(version=1)
def collect_texts(*, runtime: Runtime, out: Output) -> TextsRef:
    (out.dir / "texts").write_text("text")
    return out.ref(TextsRef)


@step(version=1)
def build_corpus(texts: TextsRef, name: str, *, runtime: Runtime, out: Output) -> CorpusRef:
    (out.dir / "shards").write_text(name * 1000)
    return out.ref(CorpusRef, num_shards=SHARDS)


@step(version=1)
def init_model(architecture: str, *, runtime: Runtime, out: Output) -> ModelRef:
    (out.dir / "weights").write_text(architecture)
    return out.ref(ModelRef)


@step(version=1)
def train(
    model: ModelRef, shards: list[ShardRef], teachers: list[FusedRef], spec: Objective, *, runtime: Runtime, out: Output
) -> ModelRef:
    (out.dir / "weights").write_text(spec.model_dump_json())
    steps = round(60 * spec.epochs)
    out.facts |= {
        "steps": steps,
        "sequences": 480,
        "tokens": 61_440,
        "batches_sha256": f"{steps:064x}",
        "train_loss": 3.0,
        "losses": [
            {"step": s, "epoch": s / 60, "loss": round(2.5 + 4 * math.exp(-s / 15) + 0.05 * math.sin(s), 5)}
            for s in range(1, steps + 1)
        ],
    }
    return out.ref(ModelRef)


@step(version=1)
def extract(model: ModelRef, shard: ShardRef, *, runtime: Runtime, out: Output) -> ScoredRef:
    (out.dir / "scored").write_text("rows" * 5000)
    out.facts |= {"documents": 100, "quarantined": ["bad"] if shard.index == 1 else []}
    return out.ref(ScoredRef)


@step(version=1)
def map_vocab(source: ModelRef, target: ModelRef, *, runtime: Runtime, out: Output) -> VocabMapRef:
    (out.dir / "map").write_text("map")
    return out.ref(VocabMapRef)


@step(version=1)
def align(source: ScoredRef, target: ScoredRef, vocab_map: VocabMapRef, *, runtime: Runtime, out: Output) -> AlignedRef:
    (out.dir / "aligned").write_text("rows" * 3000)
    out.facts |= {"rows": 1000, "present": 850, "kept": 0.8, "tail": 0.15, "unknown": 0.05}
    return out.ref(AlignedRef)


@step(version=1)
def fuse(
    target: ScoredRef, aligned: list[AlignedRef], target_as_teacher: bool, *, runtime: Runtime, out: Output
) -> FusedRef:
    (out.dir / "fused").write_text("rows" * 2000)
    number = len(aligned) + target_as_teacher
    out.facts["domains"] = {
        domain: {
            "documents": 30,
            "rows": 300,
            "rows_covered": 270,
            "documents_won": [20 if n == d % number else 10 // max(number - 1, 1) for n in range(number)],
            "rows_won": [180 if n == d % number else 90 // max(number - 1, 1) for n in range(number)],
            "nats": [1000.0 + n for n in range(number)],
            "bytes": [900] * number,
        }
        for d, domain in enumerate(DOMAINS)
    }
    return out.ref(FusedRef)


@step(version=1)
def evaluate(model: ModelRef, corpus: CorpusRef, quality: Quality, *, runtime: Runtime, out: Output) -> EvaluationRef:
    difficulty, noise = np.random.default_rng(7), np.random.default_rng(quality.noise)
    entries = []
    for domain, bits in zip(DOMAINS, quality.bits, strict=True):
        for number in range(DOCUMENTS):
            size = int(difficulty.integers(200, 2000))
            rate = bits * (1 + 0.2 * difficulty.standard_normal()) + 0.03 * noise.standard_normal()
            entries.append(
                {"id": f"{domain}-{number}", "domain": domain, "bytes": size, "nats": rate * size * math.log(2)}
            )
    (out.dir / "costs.json").write_text(json.dumps(entries))
    return out.ref(EvaluationRef)


@dataclass
class Run:
    """The arguments of `report`, and the runtime of the store that they live in."""

    arguments: dict[str, Any]
    runtime: Runtime

    @property
    def rows(self) -> list[ReportRow]:
        return self.arguments["rows"]


MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def usual_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Built once; tests work on copies of its store."""
    return build_run(Runtime(root=str(tmp_path_factory.mktemp("usual") / "store")))


@pytest.fixture
def make_run(tmp_path: Path, usual_run: Run) -> MakeRun:
    """`make_run(**changes)`: a run in this test's own store; the changes are those that `build_run` takes."""
    runtime = Runtime(root=str(tmp_path / "store"))

    def make(**changes: Any) -> Run:
        if changes:
            return build_run(runtime, **changes)
        shutil.copytree(usual_run.runtime.root, runtime.root)
        return Run(dict(usual_run.arguments), runtime)

    return make


def build_run(
    runtime: Runtime,
    *,
    fused_bits: tuple[float, ...] = (2.0, 2.5, 2.2),
    source_names: Sequence[str] = SOURCES,
    target_name: str = "target-llama",
    baseline_epochs: float = 2.0,
    title: str = "quickstart",
) -> Run:
    """Everything that a fusion run leaves before its report."""
    build = Builder(runtime)
    fusion = build.shards("fusion")
    target, sources = build.model(target_name), [build.model(name) for name in source_names]
    own = build.extract(target_name, target, fusion)
    aligned = [build.align(name, m, target, own, fusion) for name, m in zip(source_names, sources, strict=True)]
    fused = build.fuse("fuse", own, aligned)
    taught, plain = Objective(lm_weight=0.3), Objective(epochs=baseline_epochs)
    trained = build.train(f"{target_name} fused", target, fusion, fused, taught)
    alone = build.train(f"{target_name} CLM only", target, fusion, [], plain)
    own_pupil = build.train(f"{target_name} self-taught", target, fusion, build.fuse("fuse self", own, []), taught)
    rows = [
        build.row(name, "source", m, _expert_bits(n))
        for n, (name, m) in enumerate(zip(source_names, sources, strict=True))
    ]
    rows += [
        build.row(target_name, "target", target, (2.8, 3.1, 2.9)),
        build.row("CLM only", "baseline", alone, (2.3, 2.6, 2.4)),
        build.row("self-taught", "baseline", own_pupil, (2.35, 2.7, 2.45)),
        build.row("fused", "fused", trained, fused_bits),
    ]
    recipe = {"name": title, "target": {"name": target_name}, "sources": list(source_names), "min_shards": 1.0}
    arguments = {"title": title, "rows": rows, "sources": list(source_names)}
    return Run(arguments | {"aligned": aligned, "fused": fused, "recipe": recipe}, runtime)


class Builder:
    """The toy steps with the labels that the flow gives them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.texts = collect_texts.fn(runtime=runtime, label="collect texts")
        self.held_out = self.corpus("held-out")
        self.rows = 0

    def corpus(self, name: str) -> CorpusRef:
        return build_corpus.fn(self.texts, name, runtime=self.runtime, label=f"corpus {name}")

    def shards(self, name: str) -> list[ShardRef]:
        made = self.corpus(name)
        place = {"step": made.step, "fingerprint": made.fingerprint}
        return [ShardRef(**place, index=j, digest=f"{made.fingerprint[:8]}{j}") for j in range(SHARDS)]

    def model(self, name: str) -> ModelRef:
        untrained = init_model.fn(name, runtime=self.runtime, label=f"init {name}")
        return self.train(name, untrained, self.shards(name), [], Objective())

    def train(
        self, name: str, model: ModelRef, shards: list[ShardRef], teachers: list[FusedRef], spec: Objective
    ) -> ModelRef:
        return train.fn(model, shards, teachers, spec, runtime=self.runtime, label=f"train {name}")

    def extract(self, name: str, model: ModelRef, shards: list[ShardRef]) -> list[ScoredRef]:
        return [
            extract.fn(model, shard, runtime=self.runtime, label=_of(f"extract {name}", j))
            for j, shard in enumerate(shards)
        ]

    def align(
        self, name: str, model: ModelRef, target: ModelRef, own: list[ScoredRef], shards: list[ShardRef]
    ) -> list[AlignedRef]:
        vocab_map = map_vocab.fn(model, target, runtime=self.runtime, label=f"map vocabulary {name}")
        return [
            align.fn(read, own[j], vocab_map, runtime=self.runtime, label=_of(f"align {name}", j))
            for j, read in enumerate(self.extract(name, model, shards))
        ]

    def fuse(self, label: str, own: list[ScoredRef], aligned: list[list[AlignedRef]]) -> list[FusedRef]:
        return [
            fuse.fn(mine, [a[j] for a in aligned], True, runtime=self.runtime, label=_of(label, j))
            for j, mine in enumerate(own)
        ]

    def row(self, name: str, role: str, model: ModelRef, bits: tuple[float, ...]) -> ReportRow:
        quality = Quality(bits=bits, noise=self.rows)
        self.rows += 1
        measured = evaluate.fn(model, self.held_out, quality, runtime=self.runtime, label=f"evaluate {name}")
        return ReportRow.model_validate({"name": name, "role": role, "model": model, "evaluation": measured})


def _of(what: str, shard: int) -> str:
    return f"{what} {shard + 1:03}/{SHARDS:03}"


def _expert_bits(number: int) -> tuple[float, ...]:
    """Good at one domain, bad at the others."""
    return tuple(1.9 if domain == number else 3.4 for domain in range(len(DOMAINS)))
