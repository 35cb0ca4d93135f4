"""`reference: true` through the steps, against the original's rules one by one in loops and `fusion_core.reference`."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flows.recipe import Recipe
from fusion_core.fusion import MinCE
from fusion_core.reference import (
    Batch,
    Objective,
    Targets,
    choose_targets,
    collate_targets,
    mix_targets,
    pack,
    reward,
)
from fusion_core.types import Fused, TokenDist, Tokens
from tasks.align import align
from tasks.artifacts import AlignedRef, ModelRef, Runtime, ScoredRef, ShardRef
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download
from tasks.extract import extract
from tasks.formats.shards import read_aligned, read_fused, read_scored
from tasks.fuse import fuse
from tasks.models.folders import LocalModel, load_model
from tasks.storage.store import open_store
from tasks.train import train
from tasks.training.batches import Collator, Example
from tasks.training.loss import install_loss_head, training_loss
from tasks.vocab import map_vocab
from tests.conftest import ModelFactory
from tests.tasks.original import K, Read, Row, bring_rows, map_nearest, read_as_original, spell_vocabulary

pytestmark = pytest.mark.slow

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "def add(left, right):\n    return left + right",
    "a\ttab, naïve café, 漢字 \N{SLIGHTLY SMILING FACE}.",
    "Numbers: 1, 22, 333; brackets () [] {}",
    "over the brown dog, 1 + 1 == 2",
]
MARKERS = {"llama": "▁", "neox": "Ġ"}
PAD = 0


@dataclass(frozen=True)
class Made:
    runtime: Runtime
    recipe: Recipe
    target: ModelRef
    shard: ShardRef
    own: ScoredRef
    aligned: list[AlignedRef]
    read: list[Read]  # the target, then the sources
    expected: list[list[list[Row]]]  # model, document, target row: ids and logits

    def fetch(self, ref: Any) -> Path:
        return open_store(self.runtime).fetch(ref)

    def teacher(self, **choice: Any) -> Fused:
        base_teaches = choice.get("base_teaches", True)
        strategy = self.recipe.fusion.model_copy(update=choice)
        if choice.get("kind") == "reference_avg_ce":
            strategy = Recipe.model_validate(_recipe(fusion={"kind": "avg_ce"})).fusion.model_copy(update=choice)
        return read_fused(self.fetch(fuse.fn(self.own, self.aligned, strategy, base_teaches, runtime=self.runtime)))


def _recipe(**choices: Any) -> dict[str, Any]:
    def local(name: str) -> dict[str, Any]:
        return {"name": name, "model": {"kind": "local", "path": name}}

    return {
        "reference": True,
        "target": local("target"),
        "sources": [local("one"), local("two")],
        "corpus": {"documents": [{"kind": "files", "paths": ["*.txt"]}]},
        "target_as_teacher": True,
        "training": {"batch_sequences": 16, "learning_rate": 1e-9, "warmup_share": 0.0},
        **choices,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Made:
    folder = tmp_path_factory.mktemp("reference")
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    runtime = Runtime(root=str(folder / "store"), device="cpu", batch_tokens=1)  # one document at a time, as below
    recipe = Recipe.model_validate(_recipe())
    spec = CorpusSpec(documents=(Files(paths=(f"{folder}/*.txt",)),))
    (shard,) = shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)
    paths = [tiny_llama(seed=3, initializer_range=0.3), tiny_neox(seed=4, initializer_range=0.5),
             tiny_llama(seed=5, initializer_range=0.3)]  # fmt: skip
    models = [download.fn(LocalModel(path=str(path)), runtime=runtime) for path in paths]
    own, *scored = [extract.fn(model, shard, recipe.extraction, runtime=runtime) for model in models]
    maps = [map_vocab.fn(model, models[0], recipe.vocab_mapping, runtime=runtime) for model in models[1:]]
    aligned = [align.fn(a, own, m, recipe.alignment, runtime=runtime) for a, m in zip(scored, maps, strict=True)]
    store = open_store(runtime)
    read = [
        read_as_original(path, MARKERS["neox" if i == 1 else "llama"], read_scored(store.fetch(ref)).tokens)
        for i, (path, ref) in enumerate(zip(paths, [own, *scored], strict=True))
    ]
    maps_in_loops = [map_nearest(path, spell_vocabulary(paths[0])) for path in paths[1:]]
    moved = [bring_rows(source, read[0], ids) for source, ids in zip(read[1:], maps_in_loops, strict=True)]
    return Made(runtime, recipe, models[0], shard, own, aligned, read, [read[0].rows, *moved])


def _collate(made: Made, choice: dict[str, Any]) -> tuple[list[Targets], Tensor]:
    """Padded targets of everyone who teaches, and cross-entropies [documents, teachers]."""
    length, lengths = max(map(len, made.read[0].ids)), torch.tensor([len(ids) for ids in made.read[0].ids])
    targets: list[Targets] = []
    for documents in made.expected:
        ids = torch.zeros(len(documents), length, K, dtype=torch.long)
        logits = torch.full(ids.shape, -torch.inf, dtype=torch.float64)
        for d, rows in enumerate(documents):
            for i, (tokens, values) in enumerate(rows):
                ids[d, i, : len(tokens)], logits[d, i, : len(tokens)] = (
                    torch.tensor(tokens),
                    torch.tensor(values).double(),
                )
        targets.append(collate_targets(ids, logits, lengths, pad_id=PAD, base=targets[0] if targets else None))
    first = 0 if choice.get("base_teaches", True) else 1
    costs = torch.tensor([read.cross_entropy for read in made.read[first:]], dtype=torch.float64).T
    return targets[first:], costs


def _expected(made: Made, choice: dict[str, Any]) -> dict[tuple[int, int], dict[int, float]]:
    """By document and row: what the original's functions make of it."""
    targets, costs = _collate(made, choice)
    lengths = [len(ids) for ids in made.read[0].ids]
    found, places = {}, [(d, i) for d, n in enumerate(lengths) for i in range(n)]
    per_row = [costs[d] for d, _ in places]
    if choice.get("level") == "block":
        size = choice["block_tokens"]
        columns = {f"metric_ce_{c}": costs[:, c].tolist() for c in range(costs.shape[1])}
        packed = pack({"input_ids": made.read[0].ids, **columns}, size)
        per_row = [torch.tensor([packed[name][n // size] for name in columns]).double() for n in range(len(places))]
    for (d, i), cost in zip(places, per_row, strict=True):
        rows = [Targets(t.ids[d : d + 1, i : i + 1], t.probs[d : d + 1, i : i + 1]) for t in targets]
        rewards = reward(cost[None], torch.bfloat16)
        if choice.get("kind") == "reference_avg_ce":
            target = mix_targets(rows, rewards)
        else:
            target = choose_targets(rows, rewards, base_teaches=choice.get("base_teaches", True))
        pairs = zip(target.ids.flatten().tolist(), target.probs.flatten().tolist(), strict=True)
        found[d, i] = {token: prob for token, prob in pairs if prob}
    return found


def _examples(tokens: Tokens, dist: TokenDist | None) -> list[Example]:
    bounds = itertools.pairwise(tokens.doc_offsets.tolist())
    every = torch.ones_like(tokens.ids, dtype=torch.bool)
    return [
        Example(number, tokens.ids[start:stop], dist and dist.rows(start, stop), 0, every[start:stop])
        for number, (start, stop) in enumerate(bounds)
    ]


CHOICES: list[dict[str, Any]] = [
    {},
    {"base_teaches": False},
    {"level": "block", "block_tokens": 24},
    {"kind": "reference_avg_ce"},
    {"kind": "reference_avg_ce", "base_teaches": False, "level": "block", "block_tokens": 24},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_stored_teacher_is_the_originals_number_for_number(made: Made, choice: dict[str, Any]) -> None:
    dist = made.teacher(**choice).dist
    probs = dist.logprobs.exp().bfloat16().tolist()
    row = 0
    for place, expected in _expected(made, choice).items():
        start, stop = dist.row_offsets[row : row + 2].tolist()
        assert dict(zip(dist.ids[start:stop].tolist(), probs[start:stop], strict=True)) == expected, place
        row += 1
    assert row == dist.num_rows
    assert not dist.tail_logprob.isfinite().any()


def test_documents_have_different_teachers_and_rows_without_a_match_repeat_their_input(made: Made) -> None:
    assert len(made.teacher().winner.unique()) > 1
    tokens = read_scored(made.fetch(made.own)).tokens
    aligned = read_aligned(made.fetch(made.aligned[0])).dist
    alone = (aligned.row_offsets.diff() == 1).nonzero().squeeze(1)
    assert len(alone) > 10
    assert torch.equal(aligned.ids[aligned.row_offsets[alone]], tokens.ids[alone])


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize(
    ("weighting", "choice"),
    [("hard", {}), ("hard_and_decay", {"kind": "reference_avg_ce"}), ("soft", {"trust": "reward"}),
     ("soft", {"trust": "reward", "kind": "reference_avg_ce"})],
)  # fmt: skip
def test_the_loss_of_a_batch_and_its_gradient_are_the_originals(
    made: Made, loss: str, weighting: str, choice: dict[str, Any]
) -> None:
    kind = {"ce": "soft_cross_entropy", "kl": "forward_kl"}[loss]
    training = {"divergence": {"kind": kind}, "lm_weight": 0.0 if weighting == "soft" else 0.9, "batch_sequences": 1}
    if weighting == "hard_and_decay":
        training["lm_weight_schedule"] = "rising"
    spec = Recipe.model_validate(_recipe(training=training)).training
    tokens = read_scored(made.fetch(made.own)).tokens
    examples = _examples(tokens, made.teacher(**choice).dist)
    targets, costs = _collate(made, choice)
    combine = "avg_ce" if choice.get("kind") else "min_ce"
    objective = Objective.model_validate({"combine": combine, "weighting": weighting, "loss": loss})
    chosen = [[1], [3]] if weighting == "soft" else [[0, 1, 2, 3, 4], [4, 2]]
    model = load_model(made.fetch(made.target), "float32")
    head = install_loss_head(model)
    weight = model.get_output_embeddings().weight
    for documents in chosen:
        batch = Collator(weight.shape[0], spec.divergence.averaged_over == "tokens")([examples[d] for d in documents])
        ours = training_loss(
            model,
            head,
            batch,
            lm_weight=spec.lm_weight_at(3, 10),
            divergence=spec.divergence,
            num_labels=int((batch["labels"] >= 0).sum()),
            num_rows=len(batch["labels"]),
        )
        length = batch["input_ids"].shape[1]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        cut = tuple(Targets(t.ids[documents, :length], t.probs[documents, :length]) for t in targets)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        given = Batch(labels, batch["attention_mask"], cut, costs[documents], base_teaches=True)
        theirs = objective(logits, given, step=3, max_steps=10)
        assert ours.item() == pytest.approx(theirs.item(), rel=2e-6)
        found, expected = (torch.autograd.grad(value, weight)[0] for value in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_whole_training_step_reports_that_loss(made: Made) -> None:
    spec = made.recipe.training
    teacher = fuse.fn(made.own, made.aligned, made.recipe.fusion, True, runtime=made.runtime)
    trained = train.fn(made.target, [made.shard], [teacher], spec, runtime=made.runtime)
    manifest = open_store(made.runtime).manifest(trained)
    assert manifest is not None
    targets, costs = _collate(made, {})
    batch = Collator(0)(_examples(read_scored(made.fetch(made.own)).tokens, None))
    model = load_model(made.fetch(made.target), "float32")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = Objective()(logits, Batch(labels, batch["attention_mask"], tuple(targets), costs, base_teaches=True))
    assert manifest.facts["train_loss"] == pytest.approx(expected.item(), abs=2e-6)


def test_only_candidates_with_cross_entropies_can_be_compared_as_the_original_does(made: Made) -> None:
    strategy = made.recipe.fusion
    candidates = [read_aligned(made.fetch(ref)) for ref in made.aligned]
    plain = [type(c)(c.dist, c.span_nll, c.span_tokens) for c in candidates]
    tokens = read_scored(made.fetch(made.own)).tokens
    with pytest.raises(ValueError, match="expected a cross-entropy per document from 2 candidates, found it from 0"):
        strategy(plain, tokens)
    assert MinCE()(plain, tokens).dist.num_rows == len(tokens.ids)
