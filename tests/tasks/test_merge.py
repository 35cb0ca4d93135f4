"""Tiny models merged from their files: a model that transformers loads, with the weights of the definition."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusion_core.merging import Dare, Linear, MergeStrategy, Sce, Slerp, TaskArithmetic, Ties
from tasks.artifacts import ModelRef, Runtime
from tasks.download import download
from tasks.merge import check_alike, merge, merge_weights
from tasks.models.folders import LocalModel, load_model, load_tokenizer
from tasks.storage.store import open_store
from tests.conftest import ModelFactory

STRATEGIES: list[MergeStrategy] = [
    Linear(weights=(1, 3)),
    Slerp(t=0.25),
    TaskArithmetic(scales=(0.5, 0.25)),
    Ties(),
    Dare(density=0.5),
    Sce(density=0.5),
]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime(root=str(tmp_path_factory.mktemp("merging") / "store"), device="cpu")


@pytest.fixture(scope="module")
def refs(runtime: Runtime, tiny_llama: ModelFactory) -> list[ModelRef]:
    """A base and two models, in bfloat16; the last has its weights in many files."""
    folders = [tiny_llama(seed=seed, tie_word_embeddings=False) for seed in (1, 2, 3)]
    for i, folder in enumerate(folders):
        model = load_model(folder, "bfloat16")
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB" if i == 2 else "1GB")
    return [download.fn(LocalModel(path=str(folder)), runtime=runtime) for folder in folders]


def states_of(refs: list[ModelRef], runtime: Runtime) -> list[dict[str, Tensor]]:
    return [load_model(open_store(runtime).fetch(ref)).state_dict() for ref in refs]


def facts_of(ref: ModelRef, runtime: Runtime) -> dict[str, Any]:
    manifest = open_store(runtime).manifest(ref)
    assert manifest is not None
    return manifest.facts


def change(folder: Path, target: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a model folder with one weight file, edited in place or replaced by what `edit` returns."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def configure(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


# ---- the step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.kind)
def test_the_merged_model_loads_with_the_weights_of_its_strategy(
    strategy: MergeStrategy, refs: list[ModelRef], runtime: Runtime
) -> None:
    base = refs[0] if strategy.needs_base else None
    merged = merge.fn(refs[1:], base, strategy, runtime=runtime)
    start, first, second = states_of(refs, runtime)
    (found,) = states_of([merged], runtime)
    assert found.keys() == first.keys()
    for name, tensor in found.items():
        expected = strategy([first[name], second[name]], start[name] if base else None, name)
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected), name


def test_a_task_vector_is_added_as_defined_in_float64(refs: list[ModelRef], runtime: Runtime) -> None:
    merged = merge.fn(refs[1:], refs[0], TaskArithmetic(scales=(0.5, 0.25)), runtime=runtime)
    start, first, second, found = states_of([*refs, merged], runtime)
    for name, tensor in found.items():
        base, one, two = (state[name].double() for state in (start, first, second))
        expected = base + 0.5 * (one - base) + 0.25 * (two - base)
        torch.testing.assert_close(tensor.double(), expected, rtol=2**-8, atol=1e-7)


def test_the_base_gives_config_and_tokenizer_and_the_facts_say_what_was_merged(
    refs: list[ModelRef], runtime: Runtime
) -> None:
    merged = merge.fn(refs[1:], refs[0], Ties(), runtime=runtime)
    folder, base = (open_store(runtime).fetch(ref) for ref in (merged, refs[0]))
    assert {p.name for p in folder.iterdir()} == {p.name for p in base.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    assert len(load_tokenizer(folder)) == len(load_tokenizer(base))
    state = load_model(folder).state_dict()
    parameters = sum(tensor.numel() for tensor in state.values())
    assert facts_of(merged, runtime) == {
        "strategy": "ties",
        "tensors": len(state),
        "copied_tensors": 0,
        "parameters": parameters,
        "weight_bytes": 2 * parameters,
        "weight_files": 1,
        "config_differs": [],
    }


def test_what_was_merged_is_found_and_what_was_deleted_comes_back_with_the_same_bytes(
    refs: list[ModelRef], runtime: Runtime
) -> None:
    store = open_store(runtime)
    merged = merge.fn(refs[1:], refs[0], Dare(seed=4), runtime=runtime)
    before = store.manifest(merged)
    assert merge.fn(refs[1:], refs[0], Dare(seed=4), runtime=runtime) == merged
    assert store.manifest(merged) == before
    assert merge.fn(refs[1:], refs[0], Dare(seed=5), runtime=runtime) != merged
    store.delete(merged.address)
    merge.fn(refs[1:], refs[0], Dare(seed=4), runtime=runtime)
    after = store.manifest(merged)
    assert before is not None
    assert after is not None
    assert after.owner != before.owner
    assert {n: f.sha256 for n, f in after.files.items()} == {n: f.sha256 for n, f in before.files.items()}


def test_a_strategy_that_does_not_fit_is_refused_before_anything_is_read(runtime: Runtime) -> None:
    nowhere = ModelRef(step="download", fingerprint="0" * 32)
    with pytest.raises(ValueError, match=r"ties: expected the base"):
        merge.fn([nowhere, nowhere], None, Ties(), runtime=runtime)
    with pytest.raises(ValueError, match="slerp: expected 2 models, found 3"):
        merge.fn([nowhere] * 3, None, Slerp(), runtime=runtime)


# ---- files ---------------------------------------------------------------------------------------------------


def test_many_files_hold_the_same_model_as_one(refs: list[ModelRef], runtime: Runtime, tmp_path: Path) -> None:
    folders = [open_store(runtime).fetch(ref) for ref in refs[1:]]
    assert len(list(folders[1].glob("*.safetensors"))) > 2
    seen: list[tuple[int, int]] = []
    shutil.copytree(folders[0], tmp_path / "many", ignore=shutil.ignore_patterns("*.safetensors"))
    facts = merge_weights(
        folders, ["a", "b"], Linear(), tmp_path / "many", lambda *p: seen.append(p), max_file_bytes=20_000
    )
    assert facts["weight_files"] == len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert seen[-1] == (facts["weight_bytes"],) * 2
    many = load_model(tmp_path / "many").state_dict()
    (one,) = states_of([merge.fn(refs[1:], None, Linear(), runtime=runtime)], runtime)
    assert many.keys() == one.keys()
    assert all(torch.equal(many[name], one[name]) for name in one)


def test_tensors_that_are_no_weights_are_copied_if_equal_and_else_refused(
    tiny_llama: ModelFactory, tmp_path: Path
) -> None:
    folder = tiny_llama(seed=1)
    one = change(folder, tmp_path / "one", lambda t: t.update(ids=torch.arange(5)))
    two = change(folder, tmp_path / "two", lambda t: t.update(ids=torch.arange(5)))
    (tmp_path / "out").mkdir()
    facts = merge_weights([one, two], ["a", "b"], Linear(), tmp_path / "out")
    assert facts["copied_tensors"] == 1
    assert load_file(tmp_path / "out" / "model.safetensors")["ids"].tolist() == [0, 1, 2, 3, 4]
    three = change(folder, tmp_path / "three", lambda t: t.update(ids=torch.zeros(5, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"b: ids: expected the values of a, found others, and torch.int64 can't be"):
        merge_weights([one, three], ["a", "b"], Linear(), tmp_path / "out")


# ---- tied weights --------------------------------------------------------------------------------------------

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def test_a_tied_weight_that_one_file_repeats_is_merged_once(tiny_llama: ModelFactory, tmp_path: Path) -> None:
    one, two = (tiny_llama(seed=seed, tie_word_embeddings=True) for seed in (1, 2))
    assert HEAD not in load_file(one / "model.safetensors")
    both = change(two, tmp_path / "both", lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    for i, folders in enumerate([[one, both], [both, one]]):
        target = tmp_path / f"out{i}"
        shutil.copytree(one, target)
        merge_weights(folders, ["a", "b"], Linear(), target)
        assert HEAD not in load_file(target / "model.safetensors")
        state, parts = load_model(target).state_dict(), [load_model(f).state_dict() for f in (one, two)]
        assert all(torch.equal(state[name], (parts[0][name] + parts[1][name]) / 2) for name in state)


def test_a_model_that_ties_gives_its_embedding_to_an_output_layer_of_its_own(
    tiny_llama: ModelFactory, tmp_path: Path
) -> None:
    tied, untied = tiny_llama(seed=1, tie_word_embeddings=True), tiny_llama(seed=2, tie_word_embeddings=False)
    target = tmp_path / "out"
    shutil.copytree(untied, target)
    merge_weights([untied, tied], ["a", "b"], Linear(), target)
    state, own, other = (load_model(folder).state_dict() for folder in (target, untied, tied))
    assert torch.equal(state[HEAD], (own[HEAD] + other[EMBEDDING]) / 2)
    with pytest.raises(ValueError, match=r"b: expected the \d+ tensors of a, found 1 more \(lm_head.weight\).*ties"):
        merge_weights([tied, untied], ["a", "b"], Linear(), target)


# ---- models that can't be merged -----------------------------------------------------------------------------


def test_models_of_other_architectures_or_vocabularies_are_refused_with_the_way_out(
    tiny_llama: ModelFactory, tiny_neox: ModelFactory
) -> None:
    folder = tiny_llama(seed=1)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(ValueError, match=r"b: expected a llama model as a is, found gpt_neox; .* fused, not merged"):
        check_alike([folder, tiny_neox()], ["a", "b"])
    with pytest.raises(ValueError, match=f"b: expected a vocabulary of {size} as a has, found {size + 8}; resize"):
        check_alike([folder, tiny_llama(vocab_size=size + 8)], ["a", "b"])


def test_models_that_read_other_tokens_are_refused(tiny_llama: ModelFactory) -> None:
    folder, other = tiny_llama(seed=1), tiny_llama(seed=2)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["t"], vocab["h"] = vocab["h"], vocab["t"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"b: expected the tokens of a, found 2 others \('h' is id \d+, not \d+\)"):
        check_alike([folder, other], ["a", "b"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"intermediate_size": 48},
            r"b: model.layers.0.mlp.down_proj.weight: expected \[32, 64\] of F32 as in a, found \[32, 48\]",
        ),
        ({"num_hidden_layers": 1}, r"b: model.layers.1.\S+: expected .* found no such tensor"),
        ({"num_hidden_layers": 3}, r"b: expected the \d+ tensors of a, found 9 more \(model.layers.2"),
    ],
)
def test_the_tensor_that_differs_is_named(
    config: dict[str, Any], message: str, tiny_llama: ModelFactory, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        merge_weights([tiny_llama(), tiny_llama(**config)], ["a", "b"], Linear(), tmp_path)


def test_a_broken_weight_is_told_with_tensor_and_model(tiny_llama: ModelFactory, tmp_path: Path) -> None:
    folder = tiny_llama()
    broken = change(folder, tmp_path / "broken", lambda t: t["model.norm.weight"].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"model.norm.weight of model 1: expected finite weights, found 32 NaN"):
        merge_weights([folder, broken], ["a", "b"], Linear(), tmp_path)


def test_other_settings_of_one_architecture_are_recorded(tiny_llama: ModelFactory, runtime: Runtime) -> None:
    one, two = tiny_llama(seed=1), tiny_llama(seed=2)
    configure(two, rms_norm_eps=1e-5)
    refs = [download.fn(LocalModel(path=str(folder)), runtime=runtime) for folder in (one, two)]
    assert facts_of(merge.fn(refs, None, Linear(), runtime=runtime), runtime)["config_differs"] == ["rms_norm_eps"]


def test_models_that_use_equal_weights_differently_are_refused(tiny_llama: ModelFactory) -> None:
    folder, other = tiny_llama(seed=1), tiny_llama(seed=2)
    configure(other, hidden_act="gelu")
    with pytest.raises(
        ValueError, match="b: expected hidden_act silu as a has, found gelu; models that use equal weights"
    ):
        check_alike([folder, other], ["a", "b"])
