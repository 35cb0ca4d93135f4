"""Tiny models of real architectures with tokenizers trained in memory, as ordinary Hugging Face folders."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before Prefect is imported: plain `pytest` must not look anything up on the network either, nor give its server 20 s.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "60")

# Numba notices a change of a kernel's own file only, and would run a kernel with the old code of one that it calls.
_REPOSITORY = Path(__file__).parents[1]
_KERNELS = [p for p in sorted((_REPOSITORY / "fusion_core").rglob("*.py")) if b"\n@compiled" in p.read_bytes()]
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _KERNELS)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(_REPOSITORY / ".pytest_cache" / f"numba-{_DIGEST}"))


def pytest_unconfigure() -> None:
    """Prefect's temporary server says goodbye as Python ends, to a console that pytest has closed."""
    logging.raiseExceptions = False


TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "def add(left, right):\n    return left + right  # the sum of both\n",
    "  Two spaces, a\ttab, naïve café, 漢字, and a smile \N{SLIGHTLY SMILING FACE}.\n\n",
    "Numbers: 1, 22, 333; brackets () [] {}; operators == != <= >= -> ::",
] * 8

ModelFactory = Callable[..., Path]
"""`make(vocab_size=..., seed=..., **config)` writes a model folder of its own and returns it."""


def _byte_level_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _metaspace_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = saved["added_tokens"][:3]  # byte pieces belong to the model's vocabulary alone
    return Tokenizer.from_str(json.dumps(saved))


def _write(model: Any, tokenizer: Any, special_tokens: dict[str, str], folder: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)
    return folder


def _factory(
    tmp_path_factory: pytest.TempPathFactory, name: str, tokenizer: Any, special: dict[str, str]
) -> ModelFactory:
    def make(vocab_size: int | None = None, seed: int = 0, **config: Any) -> Path:
        import torch
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

        classes = {"llama": (LlamaConfig, LlamaForCausalLM), "neox": (GPTNeoXConfig, GPTNeoXForCausalLM)}
        config_class, model_class = classes[name]
        sizes = {
            "vocab_size": vocab_size or tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.token_to_id(special["bos_token"]),
            "eos_token_id": tokenizer.token_to_id(special["eos_token"]),
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config_class(**{**sizes, **config}))
        return _write(model, tokenizer, special, tmp_path_factory.mktemp(name))

    return make


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFactory:
    """Makes Llamas of two layers with a SentencePiece-style tokenizer: `▁`, byte fallback, a prefix space, `<s>`."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _factory(tmp_path_factory, "llama", _metaspace_tokenizer(), special)


@pytest.fixture(scope="session")
def tiny_neox(tmp_path_factory: pytest.TempPathFactory) -> ModelFactory:
    """Makes GPT-NeoX models of two layers with a byte-level BPE; `<|endoftext|>` begins and ends texts."""
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return _factory(tmp_path_factory, "neox", _byte_level_tokenizer(), special)
