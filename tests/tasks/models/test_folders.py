"""What a model folder must hold, and how texts become a model's tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fusion_core.types import NO_BOUNDARY
from tasks.models.folders import (
    HubModel,
    LocalModel,
    ModelSpec,
    check_readable,
    context_window,
    encode_documents,
    encode_mid_text,
    load_config,
    load_model,
    load_tokenizer,
    load_vocabulary,
    vocab_rows,
    vocabulary_of,
)
from tasks.models.trust import trusting_code
from tasks.models.weight_files import check_weights

SHARED_TOKENIZERS = Path(__file__).parents[4] / "shared" / "tokenizers"
HARD_TEXTS = [
    "the dog",
    " a leading space, two  spaces and a tab\t",
    "naïve 漢字 \N{SLIGHTLY SMILING FACE}\n\n",
    "",
    "x",
    "Looks special: <s> </s> <unk> <|endoftext|> <0x0A>",
]
Make = Callable[..., Path]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_neox"])
def folder(request: pytest.FixtureRequest) -> Path:
    make: Make = request.getfixturevalue(request.param)
    return make()


def shared_tokenizer(name: str) -> Path:
    path = SHARED_TOKENIZERS / name
    if not path.is_dir():
        pytest.skip(f"the {name} vocabulary is third-party data and not in this checkout")
    return path


# ---- encoding ----------------------------------------------------------------------------------------------


def test_documents_begin_with_the_begin_token_and_end_with_the_end_token_where_they_end(folder: Path) -> None:
    vocabulary = load_vocabulary(folder)
    ends = [i % 2 == 0 for i in range(len(HARD_TEXTS))]
    tokens = encode_documents(load_tokenizer(folder), vocabulary, HARD_TEXTS, ends)
    documents = [tokens.ids[a:b].tolist() for a, b in zip(tokens.doc_offsets[:-1], tokens.doc_offsets[1:], strict=True)]
    special = set(vocabulary.roles.values())
    for text, is_end, document in zip(HARD_TEXTS, ends, documents, strict=True):
        assert document[0] == vocabulary.roles["bos"]
        assert (len(document) > 1 and document[-1] == vocabulary.roles["eos"]) == is_end
        inside = document[1:-1] if is_end else document[1:]
        assert not special & set(inside), f"{text!r} was read as special tokens"
        assert bool(inside) == bool(text)


def test_boundaries_are_the_running_lengths_of_surfaces(folder: Path) -> None:
    vocabulary = load_vocabulary(folder)
    tokens = encode_documents(load_tokenizer(folder), vocabulary, HARD_TEXTS, [True] * len(HARD_TEXTS))
    for d, text in enumerate(HARD_TEXTS):
        first, last = tokens.doc_offsets[d : d + 2].tolist()
        surfaces = [vocabulary.surfaces[i] or b"" for i in tokens.ids[first:last].tolist()]
        prefix = len(b"".join(surfaces)) - len(text.encode())
        assert prefix in ((0, 1) if vocabulary.adds_prefix_space else (0,))
        ends = [max(len(b"".join(surfaces[: i + 1])) - prefix, 0) for i in range(len(surfaces) - 1)]
        expected = [NO_BOUNDARY if end in ends[i + 1 :] else end for i, end in enumerate(ends)]
        assert tokens.boundaries[first:last].tolist() == [*expected, NO_BOUNDARY]


def test_batching_changes_no_document(folder: Path) -> None:
    tokenizer, vocabulary = load_tokenizer(folder), load_vocabulary(folder)
    together = encode_documents(tokenizer, vocabulary, HARD_TEXTS, [False] * len(HARD_TEXTS))
    alone = [encode_documents(tokenizer, vocabulary, [text], [False]) for text in HARD_TEXTS]
    assert torch.equal(together.ids, torch.cat([t.ids for t in alone]))
    assert torch.equal(together.boundaries, torch.cat([t.boundaries for t in alone]))


def test_no_documents_are_no_tokens(folder: Path) -> None:
    tokens = encode_documents(load_tokenizer(folder), load_vocabulary(folder), [], [])
    assert (tokens.num_docs, tokens.ids.shape, tokens.ids.dtype) == (0, (0,), torch.int64)


def test_end_marks_must_match_texts(tiny_neox: Make) -> None:
    folder = tiny_neox()
    with pytest.raises(ValueError, match=r"one end mark per text, found 1 for 2"):
        encode_documents(load_tokenizer(folder), load_vocabulary(folder), ["a", "b"], [True])


def test_truncation_and_padding_saved_with_a_tokenizer_are_not_applied(tiny_neox: Make) -> None:
    folder = tiny_neox()
    parsed = json.loads((folder / "tokenizer.json").read_text())
    parsed["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    parsed["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    tokenizer = load_tokenizer(folder)
    tokens = encode_documents(tokenizer, vocabulary_of(tokenizer), ["one two three four five six", "x"], [False, False])
    assert tokens.doc_offsets[1] > 5
    assert tokens.doc_offsets[2] - tokens.doc_offsets[1] == 2
    assert encode_mid_text(tokenizer)(["x"])[0] == tokens.ids[-1:].tolist()


def test_a_normalising_tokenizer_keeps_the_boundaries_that_its_offsets_prove(tiny_neox: Make) -> None:
    folder = tiny_neox()
    parsed = json.loads((folder / "tokenizer.json").read_text())
    parsed["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    tokenizer = load_tokenizer(folder)
    text = "cafe\N{COMBINING ACUTE ACCENT} and then some"
    tokens = encode_documents(tokenizer, vocabulary_of(tokenizer), [text, "plain"], [False, False])
    first = tokens.boundaries[: tokens.doc_offsets[1]]
    proven = set(first[first != NO_BOUNDARY].tolist())
    behind = len("cafe\N{COMBINING ACUTE ACCENT}".encode())
    assert {0, len("caf"), len(text.encode())} <= proven
    assert len([end for end in proven if end > behind]) >= 3
    assert not proven & {len("cafe"), len("cafe") + 1}, "inside the composed character nothing can be proven"


def test_a_word_start_marker_in_a_text_shifts_no_boundary(tiny_llama: Make) -> None:
    tokenizer = load_tokenizer(tiny_llama())
    text = "the ▁ dog"
    tokens = encode_documents(tokenizer, vocabulary_of(tokenizer), [text], [False])
    proven = tokens.boundaries[tokens.boundaries != NO_BOUNDARY].tolist()
    whole_characters = {len(text[:i].encode()) for i in range(len(text) + 1)}
    assert set(proven) <= whole_characters
    assert proven[-1] == len(text.encode())


@pytest.mark.parametrize("name", ["gpt-2", "llama-2", "mpt"])
def test_real_vocabularies_spell_hard_texts(name: str) -> None:
    tokenizer = load_tokenizer(shared_tokenizer(name))
    vocabulary = vocabulary_of(tokenizer)
    tokens = encode_documents(tokenizer, vocabulary, HARD_TEXTS, [True] * len(HARD_TEXTS))
    for d, text in enumerate(HARD_TEXTS):
        first, last = tokens.doc_offsets[d : d + 2].tolist()
        assert tokens.boundaries[first:last].max() == len(text.encode())
        assert (tokens.ids[first + 1 : last - 1] != vocabulary.roles["eos"]).all()
        assert tokens.ids[first] == vocabulary.roles.get("bos", vocabulary.roles["eos"])


@pytest.mark.parametrize("name", ["llama-2", "gpt-2"])
def test_mid_text_encoding_tells_a_leading_space_from_none(name: str) -> None:
    tokenizer = load_tokenizer(shared_tokenizer(name))
    surfaces = vocabulary_of(tokenizer).surfaces
    cuts = encode_mid_text(tokenizer)([" the", "the", "<s>", ""])
    assert [b"".join(surfaces[i] or b"" for i in ids) for ids in cuts] == [b" the", b"the", b"<s>", b""]
    assert [len(ids) for ids in cuts[:2]] == [1, 1]
    assert cuts[0] != cuts[1]


def test_mid_text_encoding_puts_no_space_in_front(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    surfaces = vocabulary_of(tokenizer).surfaces
    for text, ids in zip(HARD_TEXTS[:5], encode_mid_text(tokenizer)(HARD_TEXTS[:5]), strict=True):
        assert b"".join(surfaces[i] or b"" for i in ids) == text.encode()


# ---- loading -----------------------------------------------------------------------------------------------


def test_a_loaded_model_gives_the_logits_it_was_saved_with(tiny_llama: Make) -> None:
    from transformers import LlamaForCausalLM

    folder = tiny_llama(seed=5)
    ids = torch.arange(10)[None]
    model = load_model(folder, "float32")
    with torch.no_grad():
        assert torch.equal(model(ids).logits, LlamaForCausalLM.from_pretrained(folder)(ids).logits)
    assert not model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_loads_in_the_precision_asked_for(tiny_neox: Make, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    assert {p.dtype for p in load_model(tiny_neox(), name).parameters()} == {dtype}


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (("LlamaConfig", {"max_position_embeddings": 4096}), 4096),
        (("GPTNeoXConfig", {"max_position_embeddings": 2048}), 2048),
        (("GPT2Config", {"n_positions": 1024}), 1024),
        (("MptConfig", {"max_seq_len": 512}), 512),
        (("MambaConfig", {}), None),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_window_is_read_under_each_architectures_name(
    config: tuple[str, dict[str, Any]], window: int | None
) -> None:
    import transformers

    assert context_window(getattr(transformers, config[0])(**config[1])) == window


def test_padded_embedding_rows_are_fine_and_are_no_vocabulary(tiny_llama: Make) -> None:
    folder = tiny_llama(vocab_size=512)
    check_readable(folder, "model x")
    assert vocab_rows(load_config(folder)) == 512
    assert load_vocabulary(folder).size == 400


# ---- bad input ---------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(ValueError, match=r"gone: expected a model folder, found nothing there"):
            load(tmp_path / "gone")


def test_a_folder_without_config_is_no_model(tiny_llama: Make) -> None:
    folder = tiny_llama()
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"model x: expected a config.json, found none"):
        check_readable(folder, "model x")


def test_an_unknown_architecture_is_one_line(tiny_llama: Make) -> None:
    folder = tiny_llama()
    (folder / "config.json").write_text('{"model_type": "made_up"}')
    with pytest.raises(ValueError, match=r"model x: config.json can't be read: .*made_up") as caught:
        check_readable(folder, "model x")
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_is_refused(tiny_llama: Make) -> None:
    folder = tiny_llama()
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"model x: expected .*tokenizer"):
        check_readable(folder, "model x")


def test_a_tokenizer_with_more_ids_than_rows_names_both_numbers(tiny_llama: Make) -> None:
    with pytest.raises(ValueError, match=r"at most 300 ids.*found 400"):
        check_readable(tiny_llama(vocab_size=300), "model x")


def test_missing_weight_parts_are_counted(tiny_llama: Make, tmp_path: Path) -> None:
    load_model(tiny_llama()).save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    check_weights(tmp_path, "model x")
    parts[1].unlink()
    with pytest.raises(
        ValueError, match=rf"expected the {len(parts)} weight files.*found {len(parts) - 1}.*{parts[1].name}"
    ):
        check_weights(tmp_path, "model x")


def test_pickled_weights_are_never_read(tiny_llama: Make) -> None:
    folder = tiny_llama()
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model.safetensors"):
        load_model(folder)


def test_code_of_another_repository_is_refused(tiny_llama: Make) -> None:
    folder = tiny_llama()
    (folder / "modeling.py").write_text("raise SystemExit('this code must not run')")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoConfig": "other/repo--modeling.Config"}})
    )
    with trusting_code(True), pytest.raises(ValueError, match=r"found 'other/repo--modeling.Config' in config.json"):
        load_config(folder)


def test_code_beside_a_model_is_refused_where_the_run_does_not_trust_it(tiny_llama: Make) -> None:
    folder = tiny_llama()
    (folder / "modeling.py").write_text("raise SystemExit('this code must not run')")
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(ValueError, match=r"expected no code, found modeling\.py.*trust_remote_code: true"):
            load(folder)
    with trusting_code(True):
        assert load_config(folder).model_type == "llama"


def test_trusted_code_is_that_of_a_commit() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert HubModel(id="a/b", revision=commit, trust_remote_code=True).trust_remote_code
    with pytest.raises(ValidationError, match="to be a commit of 40 hex digits, found 'main'"):
        HubModel(id="a/b", trust_remote_code=True)


def test_weights_that_would_be_made_up_are_refused(tiny_llama: Make) -> None:
    folder = tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"found 9 missing or of another shape \(model\.layers\.2\."):
        load_model(folder)


def test_a_model_that_needs_its_own_code_says_how_to_allow_it(tiny_llama: Make) -> None:
    folder = tiny_llama()
    (folder / "config.json").write_text('{"model_type": "made_up", "auto_map": {"AutoConfig": "modeling.Config"}}')
    with pytest.raises(ValueError, match=r"trust_remote_code: true"):
        load_config(folder)


@pytest.mark.parametrize(
    "id", ["../etc", "/abs/path", "a/b/c", "a/..", "a\0b", "a b", "", "-x/y", "owner/.hidden", "a--b/c", "x\n"]
)
def test_a_repository_id_can_not_escape(id: str) -> None:
    with pytest.raises(ValidationError, match="like owner/name"):
        HubModel(id=id)


@pytest.mark.parametrize("revision", ["", "../x", "a\0", "/main", "a b", "main\n"])
def test_a_revision_can_not_escape(revision: str) -> None:
    with pytest.raises(ValidationError, match="branch, a tag or a commit"):
        HubModel(id="owner/name", revision=revision)


def test_models_are_told_apart_by_kind() -> None:
    adapter = TypeAdapter[Any](ModelSpec)
    assert adapter.validate_python({"kind": "hub", "id": "gpt2"}) == HubModel(id="gpt2")
    assert adapter.validate_python({"kind": "local", "path": "x"}) == LocalModel(path="x")
    assert adapter.validate_python({"kind": "hub", "id": "a/b", "revision": "refs/pr/3"}).revision == "refs/pr/3"


def test_a_copied_folder_has_the_same_vocabulary(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert load_vocabulary(tmp_path / "copy").to_json() == load_vocabulary(folder).to_json()
