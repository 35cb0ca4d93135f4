"""Conversations through the steps: models of two templates meet on what the assistant says, and there alone."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_core.alignment import AlignmentStrategy, ByteBoundary, ExactDTW, MinEditDTW
from fusion_core.distributions import TopK
from fusion_core.fusion import MinCE
from fusion_core.objective import IGNORED_LABEL
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist
from fusion_core.vocab_mapping import BytePiece, Canonical
from tasks.align import align
from tasks.artifacts import AlignedRef, FusedRef, ModelRef, Ref, Runtime, ScoredRef, ShardRef, VocabMapRef
from tasks.corpora.documents import read_documents, shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download, download_description
from tasks.engines.encoding import Encoded, Encoder
from tasks.ensemble import EnsembleSpec, evaluate_ensemble
from tasks.evaluate import EvaluationSpec, evaluate
from tasks.evaluation.costs import Costs
from tasks.evaluation.gate_rules import PROBE
from tasks.extract import ExtractionSpec, extract
from tasks.formats.shards import read_aligned, read_fused, read_pair, read_scored
from tasks.fuse import fuse
from tasks.inspection import inspect_pair
from tasks.models.folders import LocalModel, load_model, load_tokenizer
from tasks.preflight.findings import PairFindings, read_findings
from tasks.probe import ProbeSpec, probe
from tasks.storage.store import Store, open_store
from tasks.training.batches import Collator
from tasks.training.examples import Examples, write_sequences
from tasks.vocab import map_vocab
from tests.conftest import TEXTS, ModelFactory
from tests.tasks.engines.test_encoding import CHAT, TEMPLATES, TOOLS

CHATS = 2  # documents; a plain one follows
EXTRACTION = ExtractionSpec(mode=TopK(k=6))


@dataclass(frozen=True)
class Made:
    """What the steps left, up to fusing."""

    runtime: Runtime
    shard: ShardRef
    target: ModelRef
    source: ModelRef
    own: ScoredRef
    read: ScoredRef
    vocab_map: VocabMapRef
    aligned: AlignedRef
    fused: FusedRef

    @property
    def store(self) -> Store:
        return open_store(self.runtime)

    def facts(self, ref: Ref) -> dict[str, object]:
        manifest = self.store.manifest(ref)
        assert manifest is not None
        return manifest.facts

    def encoded(self, model: ModelRef) -> Encoded:
        return Encoder.load(self.store, model)(read_documents(self.store, self.shard))

    def label_is_text(self, model: ModelRef) -> list[bool]:
        """Of every row of the conversations."""
        encoded = self.encoded(model)
        spans = itertools.pairwise(encoded.tokens.doc_offsets.tolist()[: CHATS + 1])
        return [r + 1 < stop and bool(encoded.is_text[r + 1]) for start, stop in spans for r in range(start, stop)]


def _chats(folder: Path) -> Files:
    return Files(paths=(f"{folder}/chats.jsonl",), format="jsonl", text_field="talk", domain="chat")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Made:
    folder = tmp_path_factory.mktemp("conversations")
    (folder / "chats.jsonl").write_text("".join(json.dumps({"talk": chat}) + "\n" for chat in (CHAT, TOOLS)))
    (folder / "plain.txt").write_text(TEXTS[0])
    spec = CorpusSpec(documents=(_chats(folder), Files(paths=(f"{folder}/plain.txt",))))
    runtime = Runtime(root=str(folder / "store"), device="cpu")
    (shard,) = shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)
    target, source = (
        download.fn(LocalModel(path=str(path), chat_template=template), runtime=runtime)
        for path, template in zip(
            (tiny_llama(seed=11), tiny_neox(seed=12, initializer_range=0.1)), TEMPLATES.values(), strict=True
        )
    )
    own, read = (extract.fn(model, shard, EXTRACTION, runtime=runtime) for model in (target, source))
    maps = map_vocab.fn(source, target, BytePiece(), runtime=runtime)
    aligned = align.fn(read, own, maps, ByteBoundary(), runtime=runtime)
    fused = fuse.fn(own, [aligned], MinCE(), True, runtime=runtime)
    return Made(runtime, shard, target, source, own, read, maps, aligned, fused)


def _facts(made: Made, ref: AlignedRef | FusedRef) -> dict[str, Any]:  # Any: plain JSON
    manifest = made.store.manifest(ref)
    assert manifest is not None
    return manifest.facts


def _row(dist: TokenDist, row: int) -> dict[int, float]:
    one = dist.rows(row, row + 1)
    return dict(zip(one.ids.tolist(), one.logprobs.tolist(), strict=True))


def test_the_recipes_template_is_the_models_wherever_it_goes(made: Made, tiny_llama: ModelFactory) -> None:
    folder = tiny_llama(seed=13)
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(saved | {"chat_template": "its own"}))
    spec = LocalModel(path=str(folder), chat_template="of the recipe")
    for step in (download, download_description):
        assert load_tokenizer(made.store.fetch(step.fn(spec, runtime=made.runtime))).chat_template == "of the recipe"
        without = step.fn(LocalModel(path=str(folder)), runtime=made.runtime)
        assert load_tokenizer(made.store.fetch(without)).chat_template == "its own"


def test_rows_are_there_and_cost_what_the_model_says_only_where_the_label_is_text(made: Made) -> None:
    for model, ref in ((made.target, made.own), (made.source, made.read)):
        scored, is_shown = read_scored(made.store.fetch(ref)), made.label_is_text(model)
        rows = len(is_shown)
        assert scored.dist.present[:rows].tolist() == is_shown
        assert (~scored.nll[:rows].isnan()).tolist() == is_shown
        assert bool(scored.dist.present[rows:].all())
        network = load_model(made.store.fetch(model)).double()
        for start, stop in itertools.pairwise(scored.tokens.doc_offsets.tolist()[: CHATS + 1]):
            ids = scored.tokens.ids[start:stop]
            logprobs = network(ids.unsqueeze(0)).logits[0].log_softmax(1).detach()
            for row in (r for r in range(start, stop) if is_shown[r]):
                expected = -float(logprobs[row - start, scored.tokens.ids[row + 1]])
                assert float(scored.nll[row]) == pytest.approx(expected, abs=2e-3)


def _rows_by_boundary(scored: Scored, document: int) -> dict[int, int]:
    """The row that stands at each boundary of a document."""
    rows = range(*scored.tokens.doc_offsets[document : document + 2].tolist())
    return {b: row for row in rows if (b := int(scored.tokens.boundaries[row])) != NO_BOUNDARY}


@pytest.mark.parametrize("target_teaches", [True, False])
def test_the_teacher_is_what_a_walk_over_the_shared_bytes_defines(made: Made, target_teaches: bool) -> None:
    own, read = (read_scored(made.store.fetch(ref)) for ref in (made.own, made.read))
    fused = fuse.fn(made.own, [made.aligned], MinCE(), target_teaches, runtime=made.runtime)
    teacher = read_fused(made.store.fetch(fused))
    target_id = read_pair(made.store.fetch(made.vocab_map)).vocab_map.ids.tolist()
    is_shown, taught = made.label_is_text(made.target), 0
    for document in range(CHATS):
        here, there = _rows_by_boundary(own, document), _rows_by_boundary(read, document)
        first, *_, last = sorted(here.keys() & there.keys())
        paid = [float(s.nll[rows[first] : rows[last]].nansum()) for s, rows in ((own, here), (read, there))]
        winner = paid.index(min(paid)) if target_teaches else 1
        for row in range(*own.tokens.doc_offsets[document : document + 2].tolist()):
            expected: dict[int, float] = {}
            boundary = int(own.tokens.boundaries[row])
            if winner == 0 and is_shown[row]:
                expected = {token: math.exp(logprob) for token, logprob in _row(own.dist, row).items()}
            elif winner == 1 and boundary in there:
                for token, logprob in _row(read.dist, there[boundary]).items():
                    if target_id[token] >= 0:
                        expected[target_id[token]] = expected.get(target_id[token], 0.0) + math.exp(logprob)
            found = {token: math.exp(logprob) for token, logprob in _row(teacher.dist, row).items()}
            assert found == pytest.approx(expected, abs=2e-3)
            assert is_shown[row] or not found
            taught += bool(found)
    assert taught > 10


@pytest.mark.parametrize(
    "strategy",
    [
        ByteBoundary(),
        ByteBoundary(cover=2, lookahead=4, bridge=True),
        ExactDTW(),
        MinEditDTW(first_marker=True),
        MinEditDTW(unmatched="label"),
        MinEditDTW(reference=True),
    ],
    ids=repr,
)
def test_no_alignment_fills_a_row_outside_the_text(made: Made, strategy: AlignmentStrategy) -> None:
    maps = map_vocab.fn(made.source, made.target, Canonical(), runtime=made.runtime)
    aligned = read_aligned(made.store.fetch(align.fn(made.read, made.own, maps, strategy, runtime=made.runtime)))
    is_shown = torch.tensor(made.label_is_text(made.target))
    present = aligned.dist.present[: len(is_shown)]
    assert int(present.sum()) > 10
    assert not bool((present & ~is_shown).any())
    spent, scored = aligned.span_nll[: len(is_shown)], read_scored(made.store.fetch(made.read))
    of_chats = scored.tokens.doc_of_token < CHATS
    assert float(spent.nansum()) == pytest.approx(float(scored.nll[of_chats].nansum()), abs=1e-2)
    assert int(aligned.span_tokens[: len(is_shown)].sum()) == int((~scored.nll[of_chats].isnan()).sum())


def test_a_model_has_a_teacher_in_itself_for_every_row_that_wants_one(made: Made, tiny_llama: ModelFactory) -> None:
    maps = map_vocab.fn(made.target, made.target, BytePiece(), runtime=made.runtime)
    aligned = align.fn(made.own, made.own, maps, ByteBoundary(), runtime=made.runtime)
    domains = _facts(made, fuse.fn(made.own, [aligned], MinCE(), True, runtime=made.runtime))["domains"]
    assert domains["chat"]["rows"] == domains["chat"]["rows_covered"] == sum(made.label_is_text(made.target))
    assert domains["text"]["rows"] == domains["text"]["rows_covered"] > 0
    facts, rows = _facts(made, aligned), sum(domain["rows"] for domain in domains.values())
    assert (facts["rows"], facts["present"]) == (rows, rows - 1)  # the plain document's end is no boundary
    model = LocalModel(path=str(tiny_llama(seed=11)), chat_template=TEMPLATES["tiny_llama"])
    described = download_description.fn(model, runtime=made.runtime)
    ref = inspect_pair.fn(described, described, [made.shard], runtime=made.runtime)
    found = read_findings(made.store, ref, PairFindings).domains["chat"]
    assert (found.common, found.bridged, found.absent) == (domains["chat"]["rows"], 0, 0)


def test_a_training_learns_what_is_learned_and_nothing_else(made: Made, tmp_path: Path) -> None:
    write_sequences(made.store, made.target, [made.shard], tmp_path)
    examples = Examples(made.store, tmp_path, [made.shard], [made.fused])
    encoded = made.encoded(made.target)
    starts = encoded.tokens.doc_offsets.tolist()
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        learned = encoded.is_learned[start:stop].clone()
        learned[0] = False
        batch = Collator(examples.vocab_size)([examples[number]])
        assert torch.equal(batch["labels"], encoded.tokens.ids[start:stop][learned])
        assert torch.equal(batch["kept"][0], learned.roll(-1))
        every = Collator(examples.vocab_size, every_token=True)([examples[number]])
        assert every["labels"].tolist() == [*batch["labels"].tolist(), *[IGNORED_LABEL] * bool(learned[-1])]
    assert len(batch["labels"]) == starts[-1] - starts[-2] - 1  # the plain document


def test_evaluation_pays_for_the_assistants_bytes_alone_and_one_or_many(made: Made) -> None:
    costs = Costs.read(made.store, evaluate.fn(made.target, [made.shard], EvaluationSpec(), runtime=made.runtime))
    assert costs.bytes.tolist() == [len(p.text.encode()) for p in read_documents(made.store, made.shard)]
    scored = read_scored(made.store.fetch(made.own))
    for document in range(CHATS):
        spent = scored.nll[scored.tokens.doc_of_token == document].nansum()
        assert costs.nats[document] == pytest.approx(float(spent), abs=5e-3)
    together = [made.target, made.target]
    alike = evaluate_ensemble.fn(together, [made.shard], EnsembleSpec(), runtime=made.runtime)
    assert Costs.read(made.store, alike).nats == pytest.approx(costs.nats, abs=1e-4)
    mixed = evaluate_ensemble.fn([made.target, made.source], [made.shard], EnsembleSpec(), runtime=made.runtime)
    other = Costs.read(made.store, evaluate.fn(made.source, [made.shard], EvaluationSpec(), runtime=made.runtime))
    worst = [max(pair) for pair in zip(costs.nats, other.nats, strict=True)]
    assert all(nats <= most for nats, most in zip(Costs.read(made.store, mixed).nats, worst, strict=True))


def test_a_probe_lets_the_model_answer_the_first_question(made: Made) -> None:
    ref = probe.fn(made.target, [made.shard], ProbeSpec(prompt_tokens=4), runtime=made.runtime)
    prompts = [text["prompt"] for text in json.loads((made.store.fetch(ref) / PROBE).read_text())]
    assert [prompt.lstrip() for prompt in prompts[:CHATS]] == [
        "[Be brief.][the dog?]",
        "[add]I call.[{'name': 'sum'}][3]",
    ]
    assert TEXTS[0].startswith(prompts[CHATS].lstrip())


def test_a_model_without_a_template_is_refused_by_its_name_before_it_reads(made: Made, tiny_neox: ModelFactory) -> None:
    folder = tiny_neox(seed=14)
    model = download.fn(LocalModel(path=str(folder)), runtime=made.runtime)
    sentence = f"model {folder}: expected a chat template to read 2 conversations with, found none; .*chat_template"
    with pytest.raises(ValueError, match=sentence):
        extract.fn(model, made.shard, EXTRACTION, runtime=made.runtime)


def test_an_extraction_says_how_many_conversations_offer_tools_that_its_model_is_not_shown(
    made: Made, tiny_llama: ModelFactory, tmp_path: Path
) -> None:
    rows = [{"talk": TOOLS, "tools": [{"name": "sum"}]}, {"talk": CHAT}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = _chats(tmp_path).model_copy(update={"tools_field": "tools"})
    (shard,) = shards_of(build_corpus.fn(CorpusSpec(documents=(source,)), [], runtime=made.runtime), made.runtime)
    assert made.facts(extract.fn(made.target, shard, EXTRACTION, runtime=made.runtime))["tools_unseen"] == 1
    assert "tools_unseen" not in made.facts(made.own)
    shown = LocalModel(path=str(tiny_llama(seed=11)), chat_template="{{ tools }}" + TEMPLATES["tiny_llama"])
    model = download.fn(shown, runtime=made.runtime)
    assert "tools_unseen" not in made.facts(extract.fn(model, shard, EXTRACTION, runtime=made.runtime))


def _refusing(role: str) -> str:
    """A template for which there are no messages of a role, as many know no system's or tool's."""
    refusal = f"{{% if m.role == '{role}' %}}{{{{ raise_exception('no {role}') }}}}{{% endif %}}"
    return f"{{% for m in messages %}}{refusal}{{{{ m.content }}}}{{{{ eos_token }}}}{{% endfor %}}"


def test_training_probe_and_inspection_leave_out_what_extraction_quarantines(
    made: Made, tiny_llama: ModelFactory, tmp_path: Path
) -> None:
    specs = [LocalModel(path=str(tiny_llama(seed=15)), chat_template=_refusing(role)) for role in ("system", "tool")]
    model = download.fn(specs[0], runtime=made.runtime)
    refused, called, _ = [document.id for document in read_documents(made.store, made.shard)]
    spec = ExtractionSpec(mode=TopK(k=6), max_quarantined=0.5)
    own = extract.fn(model, made.shard, spec, runtime=made.runtime)
    assert made.facts(own)["quarantined"] == [refused]

    fused = fuse.fn(own, [], MinCE(), True, runtime=made.runtime)
    write_sequences(made.store, model, [made.shard], tmp_path)
    examples = Examples(made.store, tmp_path, [made.shard], [fused])
    assert examples.left_out == [refused]
    assert refused not in [examples.document(number) for number in range(len(examples))]
    assert len(examples) == CHATS  # one conversation, and the plain document

    probed = probe.fn(model, [made.shard], ProbeSpec(prompt_tokens=4), runtime=made.runtime)
    assert made.facts(probed)["left_out"] == [refused]
    assert refused not in [text["document"] for text in json.loads((made.store.fetch(probed) / PROBE).read_text())]

    pair = [download_description.fn(spec, runtime=made.runtime) for spec in specs]
    inspected = inspect_pair.fn(*pair, [made.shard], runtime=made.runtime)
    assert made.facts(inspected)["left_out"] == [refused, called]
    assert read_findings(made.store, inspected, PairFindings).sample_bytes == len(TEXTS[0].encode())


def test_evaluation_names_the_model_the_document_and_the_way_out(made: Made, tiny_llama: ModelFactory) -> None:
    folder = tiny_llama(seed=15)
    model = download.fn(LocalModel(path=str(folder), chat_template=_refusing("tool")), runtime=made.runtime)
    called = read_documents(made.store, made.shard)[1].id
    sentence = rf"model {folder} can read, found 1 of 3 .*document {called}: .*no tool\)\); .*set chat_template"
    with pytest.raises(ValueError, match=sentence):
        evaluate.fn(model, [made.shard], EvaluationSpec(), runtime=made.runtime)


def test_a_model_that_can_read_nothing_is_named_with_the_way_out(made: Made, tiny_llama: ModelFactory) -> None:
    folder = tiny_llama(seed=15)
    spec = LocalModel(path=str(folder), chat_template="{{ raise_exception('never') }}")
    chats = CorpusSpec(documents=(_chats(Path(made.runtime.root).parent),))
    (shard,) = shards_of(build_corpus.fn(chats, [], runtime=made.runtime), made.runtime)
    described = download_description.fn(spec, runtime=made.runtime)
    with pytest.raises(ValueError, match=rf"model {folder}: expected documents .*none among 2 .*never.*chat_template"):
        inspect_pair.fn(described, described, [shard], runtime=made.runtime)
    with pytest.raises(ValueError, match=rf"model {folder}: expected documents .*none among 2"):
        write_sequences(made.store, download.fn(spec, runtime=made.runtime), [shard], Path(made.runtime.root))
