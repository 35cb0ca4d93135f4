"""Models from nothing are ordinary Hugging Face folders, the same bytes every time."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tasks.artifacts import Runtime, ShardRef, TokenizerRef
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.models.folders import load_model, load_tokenizer, load_vocabulary
from tasks.scratch import (
    ArchitectureSpec,
    ByteLevelBpe,
    Gpt2,
    GptNeoX,
    Llama,
    MetaspaceBpe,
    Mpt,
    init_model,
    train_tokenizer,
)
from tasks.storage.store import open_store

TEXTS = [
    f"def add_{i}(left, right):\n    return left + right * {i}\n\nThe sum of é and ü, {i} times.\n" for i in range(60)
]
FOREIGN = "naïve  tabs\tand 漢字\n\n  <s> <0x0A> 🙂 end"
TOKENIZERS = [ByteLevelBpe(vocab_size=300), MetaspaceBpe(vocab_size=400, alphabet=60)]
ARCHITECTURES = [kind(hidden_size=32, layers=2, heads=4, window=64, seed=3) for kind in (Llama, GptNeoX, Gpt2, Mpt)]


def build_shards(runtime: Runtime, folder: Path) -> list[ShardRef]:
    lines = folder / "texts.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    spec = CorpusSpec(documents=(Files(paths=(str(lines),), format="jsonl"),))
    return shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime(root=str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def tokenizers(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenizerRef]:
    shards = build_shards(runtime, tmp_path_factory.mktemp("texts"))
    return {spec.kind: train_tokenizer.fn(shards, spec, runtime=runtime) for spec in TOKENIZERS}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("spec", TOKENIZERS, ids=lambda s: s.kind)
def test_every_text_survives_encoding(
    spec: ByteLevelBpe | MetaspaceBpe, runtime: Runtime, tokenizers: dict[str, TokenizerRef]
) -> None:
    tokenizer = load_tokenizer(open_store(runtime).fetch(tokenizers[spec.kind]))
    for text in [*TEXTS[:3], FOREIGN]:
        tokenizer.backend_tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == text
    assert len(tokenizer) == spec.vocab_size


def test_metaspace_puts_the_begin_token_and_a_word_start_first(
    runtime: Runtime, tokenizers: dict[str, TokenizerRef]
) -> None:
    tokenizer = load_tokenizer(open_store(runtime).fetch(tokenizers["metaspace_bpe"]))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("def é漢")["input_ids"])
    assert tokens[0] == "<s>"
    assert tokens[1].startswith("\u2581")
    assert tokens[-3:] == ["<0xE6>", "<0xBC>", "<0xA2>"]


def test_byte_level_begins_and_ends_with_one_token_and_adds_no_space(
    runtime: Runtime, tokenizers: dict[str, TokenizerRef]
) -> None:
    tokenizer = load_tokenizer(open_store(runtime).fetch(tokenizers["byte_level_bpe"]))
    assert tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(tokenizer("def")["input_ids"])[0].startswith("d")


@pytest.mark.parametrize("kind", ["byte_level_bpe", "metaspace_bpe"])
def test_surfaces_of_the_vocabulary_are_the_bytes_of_the_text(
    kind: str, runtime: Runtime, tokenizers: dict[str, TokenizerRef]
) -> None:
    folder = open_store(runtime).fetch(tokenizers[kind])
    vocabulary, tokenizer = load_vocabulary(folder), load_tokenizer(folder)
    tokenizer.backend_tokenizer.encode_special_tokens = True
    ids = tokenizer.backend_tokenizer.encode(FOREIGN, add_special_tokens=False).ids
    joined = b"".join(vocabulary.surfaces[i] for i in ids)
    assert joined.removeprefix(b" ") == FOREIGN.encode()


@pytest.mark.parametrize("spec", TOKENIZERS, ids=lambda s: s.kind)
def test_training_again_gives_the_same_bytes(
    spec: ByteLevelBpe | MetaspaceBpe, runtime: Runtime, tokenizers: dict[str, TokenizerRef], tmp_path: Path
) -> None:
    for attempt in range(5):  # the library's hash maps are seeded anew in each, so ties would show
        spec(TEXTS).save_pretrained(tmp_path / str(attempt))
        assert contents(tmp_path / str(attempt)) == contents(open_store(runtime).fetch(tokenizers[spec.kind]))


@pytest.mark.parametrize("kind", ["byte_level_bpe", "metaspace_bpe"])
@pytest.mark.parametrize("spec", ARCHITECTURES, ids=lambda s: s.kind)
def test_a_new_model_is_an_ordinary_folder(
    spec: Llama, kind: str, runtime: Runtime, tokenizers: dict[str, TokenizerRef]
) -> None:
    folder = open_store(runtime).fetch(init_model.fn(tokenizers[kind], spec, runtime=runtime))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert model.config.model_type == spec.kind
    assert len(tokenizer) == model.config.vocab_size
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    ids = torch.randint(0, model.config.vocab_size, (2, spec.window), generator=torch.Generator().manual_seed(0))
    logprobs = model(input_ids=ids).logits.log_softmax(-1)
    assert logprobs.isfinite().all()
    nll = -logprobs[:, :-1].gather(-1, ids[:, 1:, None]).mean()
    assert abs(nll - torch.tensor(float(model.config.vocab_size)).log()) < 0.3  # it knows nothing yet


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=lambda s: s.kind)
def test_weights_depend_on_the_seed_and_on_nothing_else(
    spec: Llama, tokenizers: dict[str, TokenizerRef], runtime: Runtime, tmp_path: Path
) -> None:
    first = open_store(runtime).fetch(init_model.fn(tokenizers["byte_level_bpe"], spec, runtime=runtime))
    elsewhere = Runtime(root=str(tmp_path / "store"))
    torch.manual_seed(99)
    tokenizer = train_tokenizer.fn(build_shards(elsewhere, tmp_path), TOKENIZERS[0], runtime=elsewhere)
    again = open_store(elsewhere).fetch(init_model.fn(tokenizer, spec, runtime=elsewhere))
    other = open_store(elsewhere).fetch(
        init_model.fn(tokenizer, spec.model_copy(update={"seed": 4}), runtime=elsewhere)
    )
    assert contents(again) == contents(first)
    assert contents(other)["model.safetensors"] != contents(first)["model.safetensors"]


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=lambda s: s.kind)
def test_matrices_have_the_configured_spread(
    spec: Llama, runtime: Runtime, tokenizers: dict[str, TokenizerRef]
) -> None:
    model = load_model(open_store(runtime).fetch(init_model.fn(tokenizers["byte_level_bpe"], spec, runtime=runtime)))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(model.config.initializer_range, rel=0.1), name


def test_an_empty_corpus_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="found none in 0 shards"):
        train_tokenizer.fn([], ByteLevelBpe(), runtime=runtime)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "llama", "hidden_size": 30, "heads": 4}, r"multiple of twice the heads \(8\), found 30"),
        ({"kind": "llama", "hiden_size": 32}, "Extra inputs"),
        ({"kind": "rnn"}, "rnn"),
    ],
)
def test_bad_architectures_are_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ArchitectureSpec).validate_python(data)


def test_a_vocabulary_without_room_for_its_alphabet_is_refused() -> None:
    with pytest.raises(ValidationError, match="found vocab_size 400"):
        MetaspaceBpe(vocab_size=400, alphabet=200)
