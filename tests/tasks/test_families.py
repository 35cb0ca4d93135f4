"""Families of models, tiny and random with their real architectures, against the plain forward pass in float64."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_core.distributions import TopK
from fusion_core.types import Scored, Tokens
from tasks.artifacts import Runtime
from tasks.engines import ModelScorer, TransformersEngine, score_tokens, split_head
from tasks.models.folders import encode_documents, load_model, load_tokenizer, vocabulary_of
from tests.conftest import TEXTS, ModelFactory

DOCUMENTS = [TEXTS[0], "ab", TEXTS[2], TEXTS[1] * 2]
ROWS, KEPT = 352, 5  # the tokenizer has fewer ids: the other rows are padding
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Family:
    """What a family's config needs beside `SIZES`, or in their place."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)


FAMILIES = [
    Family("llama"),
    Family("mistral"),
    Family("mixtral", {"num_local_experts": 4}),
    Family("qwen2"),
    Family("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    Family("qwen3", {"head_dim": 8}),
    Family("qwen3_moe", {**EXPERTS, "head_dim": 8}),
    Family("gemma", {"head_dim": 8}),
    Family("gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    Family("gemma3_text", {"head_dim": 8}),
    Family("phi"),
    Family("phi3"),
    Family("gpt_neox"),
    Family("gptj", {**GPT2, "rotary_dim": 8}, {}),
    Family("gpt2", GPT2, {}),
    Family("gpt_bigcode", GPT2, {}),
    Family("gpt_oss", {"num_local_experts": 4, "head_dim": 8}),
    Family("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}, {}),
    Family("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, {}),
    Family("falcon_h1", {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5}),
    Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}),
    Family("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, {}),
    Family("olmo"),
    Family("olmo2"),
    Family("olmoe", EXPERTS),
    Family("starcoder2"),
    Family("stablelm"),
    Family("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, {}),
    Family("cohere", {"logit_scale": 0.25}),
    Family("cohere2", {"logit_scale": 0.25}),
    Family("granite", {"logits_scaling": 4.0}),
    Family("recurrent_gemma", {"logits_soft_cap": 3.0, "lru_width": 32, "attention_window_size": 64}),
    Family("xlstm", {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "output_logit_soft_cap": 3.0}, {}),
    Family("nemotron"),
    Family("glm4", {"head_dim": 8}),
    Family("smollm3"),
]


def _write(family: Family, tokenizer: Path, folder: Path) -> Path:
    """The folder of a model of the family, with logits large enough for caps and padded rows that would win."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(family.name, vocab_size=ROWS, **ends, **{**family.sizes, **family.config})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight *= 10
        head.weight[ROWS - 20 :] *= 5
        if head.bias is not None:
            head.bias.normal_(generator=torch.Generator().manual_seed(2))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def _check_rows(model: Any, tokens: Tokens, scored: Scored, vocab_size: int) -> None:
    """Every document by itself, in float64, has these likeliest ids and costs."""
    model.double().set_experts_implementation("eager")  # fused experts multiply no float64
    for start, stop in zip(tokens.doc_offsets[:-1].tolist(), tokens.doc_offsets[1:].tolist(), strict=True):
        ids = tokens.ids[start:stop]
        with torch.no_grad():
            truth = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
        rows = scored.dist.rows(start, stop)
        best = truth[:, :vocab_size].topk(KEPT).values
        torch.testing.assert_close(rows.logprobs.double().view(-1, KEPT), best, atol=5e-5, rtol=0)
        torch.testing.assert_close(truth.gather(1, rows.ids.view(-1, KEPT)), best, atol=5e-5, rtol=0)
        expected = -truth[:-1].gather(1, ids[1:, None]).squeeze(1)
        torch.testing.assert_close(scored.nll[start : stop - 1].double(), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_gives_its_float64_softmax_with_its_head_apart(
    family: Family, tiny_neox: ModelFactory, tmp_path: Path
) -> None:
    folder = _write(family, tiny_neox(), tmp_path)
    tokenizer = load_tokenizer(folder)
    vocabulary = vocabulary_of(tokenizer)
    tokens = encode_documents(tokenizer, vocabulary, DOCUMENTS, [True] * len(DOCUMENTS))
    runtime = Runtime(root=str(tmp_path), device="cpu", batch_tokens=256)
    scorer = TransformersEngine()(folder, TopK(k=KEPT), vocabulary.size, runtime)
    scored, quarantined = score_tokens(scorer, tokens, vocabulary.size)
    assert quarantined == {}
    assert scorer.head is not None
    assert vocabulary.size < ROWS - 20
    assert int(scored.dist.ids.max()) < vocabulary.size
    _check_rows(scorer._model, tokens, scored, vocabulary.size)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scaled": lambda logits: logits * 0.85,
    "scaled by little": lambda logits: logits * 1.001,
    "capped far above them": lambda logits: (logits / 30).tanh() * 30,
    "one column masked": lambda logits: logits.index_fill(-1, torch.tensor([7]), -torch.inf),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_does_more_to_its_logits_than_it_declares_is_read_whole(
    change: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, tiny_neox: ModelFactory
) -> None:
    from transformers import GPTNeoXForCausalLM

    class Undeclared(GPTNeoXForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = change(output.logits)
            return output

    folder = tiny_neox()
    assert split_head(load_model(folder, dtype)) is not None
    assert split_head(Undeclared.from_pretrained(folder, dtype=dtype).eval()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_does_more_to_what_its_head_reads_is_read_whole(
    dtype: torch.dtype, tiny_llama: ModelFactory
) -> None:
    model = load_model(tiny_llama(), dtype)
    assert split_head(model) is not None
    with model.get_output_embeddings().register_forward_pre_hook(lambda module, args: (args[0] * 0.98,)):
        assert split_head(model) is None
    assert split_head(model) is not None


def test_a_model_that_is_read_whole_gives_its_float64_softmax(tiny_neox: ModelFactory) -> None:
    from transformers import GPTNeoXForCausalLM

    class Undeclared(GPTNeoXForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.001
            return output

    folder = tiny_neox()
    tokenizer = load_tokenizer(folder)
    vocabulary = vocabulary_of(tokenizer)
    tokens = encode_documents(tokenizer, vocabulary, DOCUMENTS, [True] * len(DOCUMENTS))
    model = Undeclared.from_pretrained(folder, dtype=torch.float32).eval()
    scorer = ModelScorer(model, TopK(k=KEPT), vocabulary.size, batch_tokens=256)
    assert scorer.facts["head"] == "all logits at once"
    _check_rows(model, tokens, score_tokens(scorer, tokens, vocabulary.size)[0], vocabulary.size)
