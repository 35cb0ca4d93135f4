"""Models from nothing: a tokenizer trained on shards, and a network with random weights of a known architecture.

Both are plain Hugging Face folders, so whatever reads a downloaded model reads these. Pretraining isn't here:
it is the same `train` step as everywhere, at `lm_weight` 1.
"""

import itertools
import json
import shutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from fusion_core.spec import Spec
from tasks.artifacts import ModelRef, Runtime, ShardRef, TokenizerRef
from tasks.corpora.documents import read_documents
from tasks.models.folders import load_tokenizer, one_at_a_time
from tasks.step import Output, step
from tasks.storage.store import open_store

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_WORD_START = "\u2581"


class ByteLevelBpe(Spec):
    """Byte-level BPE as GPT-NeoX has it: every byte is a token, and one token both begins and ends a document."""

    kind: Literal["byte_level_bpe"] = "byte_level_bpe"
    vocab_size: int = Field(
        1024, ge=257, title="Vocabulary", description="Tokens: 1 special one, 256 bytes, the rest merges."
    )

    def __call__(self, texts: Sequence[str]) -> "PreTrainedTokenizerFast":
        """The trained tokenizer. It has fewer than `vocab_size` tokens when the texts don't hold enough pairs."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


class MetaspaceBpe(Spec):
    """BPE over characters as Llama 2 has it: a space put first, rare characters spelled in bytes, `<s>` and `</s>`."""

    kind: Literal["metaspace_bpe"] = "metaspace_bpe"
    vocab_size: int = Field(
        1024, ge=360, title="Vocabulary", description="Tokens: 3 special ones, 256 bytes, characters, merges."
    )
    alphabet: int = Field(
        100,
        ge=1,
        title="Characters",
        description="The most frequent ones are tokens; others are spelled by their UTF-8 bytes.",
    )

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if 3 + 256 + self.alphabet > self.vocab_size:
            raise ValueError(
                f"expected a vocabulary of at least 3 special tokens + 256 bytes + {self.alphabet} characters, "
                f"found vocab_size {self.vocab_size}; raise it or lower alphabet"
            )
        return self

    def __call__(self, texts: Sequence[str]) -> "PreTrainedTokenizerFast":
        """The trained tokenizer. It has fewer than `vocab_size` tokens when the texts don't hold enough pairs."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        spaces = normalizers.Sequence([normalizers.Prepend(_WORD_START), normalizers.Replace(" ", _WORD_START)])
        learner = Tokenizer(models.BPE())
        learner.normalizer = spaces
        # Merges are learned within words and runs of spaces; in use nothing cuts the text first, as in Llama 2.
        learner.pre_tokenizer = pre_tokenizers.Split(
            Regex(rf"{_WORD_START}*[^{_WORD_START}\n]+|{_WORD_START}+|\n+"), "isolated"
        )
        characters = self._alphabet_of(texts)
        special = ["<unk>", "<s>", "</s>"]
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
            initial_alphabet=characters,
            limit_alphabet=len(characters),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)

        learned = json.loads(learner.to_str())["model"]
        merges = [(left, right) for left, right in learned["merges"]]
        backend = Tokenizer(models.BPE(learned["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        backend.add_special_tokens(special)  # only these: a byte's name within a text is text
        backend.normalizer = spaces
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")

    def _alphabet_of(self, texts: Sequence[str]) -> list[str]:
        """The most frequent characters; among equally frequent ones the library's own choice differs between runs."""
        counts = Counter(itertools.chain.from_iterable(texts))
        counts[_WORD_START] = counts.pop(" ", 0) + len(texts)
        frequent = sorted(counts, key=lambda character: (-counts[character], character))
        return sorted(frequent[: self.alphabet])


TokenizerSpec = Annotated[ByteLevelBpe | MetaspaceBpe, Field(discriminator="kind")]


class Architecture(Spec):
    """A decoder's sizes. Weights are drawn from the seed; embedding and head share one matrix."""

    hidden_size: int = Field(96, ge=8, title="Hidden size", description="Width of the model.")
    layers: int = Field(2, ge=1, title="Layers", description="Blocks of attention and MLP.")
    heads: int = Field(4, ge=1, title="Attention heads", description="Must divide the hidden size.")
    window: int = Field(512, ge=8, title="Context window", description="Tokens that the model reads at most.")
    seed: int = Field(0, ge=0, title="Seed", description="Of the weights.")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"expected a hidden size that is a multiple of twice the heads ({2 * self.heads}), "
                f"found {self.hidden_size}; change one of them"
            )
        return self

    def config(self, tokenizer: "PreTrainedTokenizerFast") -> "PretrainedConfig":
        """The configuration for a model that reads this tokenizer's ids."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            **self._own_names(),
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )

    @abstractmethod
    def _own_names(self) -> dict[str, object]:
        """The sizes under the names that the architecture's configuration gives them, and its `model_type`."""


class Llama(Architecture):
    """Rotary positions, RMS norm, gated MLP of 8/3 the hidden size."""

    kind: Literal["llama"] = "llama"

    def _own_names(self) -> dict[str, object]:
        return {
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.hidden_size * 8 // 3 // 16 * 16,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.window,
        }


class GptNeoX(Architecture):
    """Rotary positions on a quarter of each head, layer norm, attention and MLP side by side."""

    kind: Literal["gpt_neox"] = "gpt_neox"

    def _own_names(self) -> dict[str, object]:
        return {
            "model_type": "gpt_neox",
            "hidden_size": self.hidden_size,
            "intermediate_size": 4 * self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.window,
        }


class Gpt2(Architecture):
    """Learned positions, layer norm; without dropout."""

    kind: Literal["gpt2"] = "gpt2"

    def _own_names(self) -> dict[str, object]:
        sizes = {"n_embd": self.hidden_size, "n_layer": self.layers, "n_head": self.heads, "n_positions": self.window}
        return {"model_type": "gpt2", **sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Mpt(Architecture):
    """No positions but a penalty on distance (ALiBi), layer norm, no biases."""

    kind: Literal["mpt"] = "mpt"

    def _own_names(self) -> dict[str, object]:
        sizes = {
            "d_model": self.hidden_size,
            "n_layers": self.layers,
            "n_heads": self.heads,
            "max_seq_len": self.window,
        }
        return {"model_type": "mpt", **sizes}


ArchitectureSpec = Annotated[Llama | GptNeoX | Gpt2 | Mpt, Field(discriminator="kind")]


@step(version=1)
def train_tokenizer(shards: list[ShardRef], spec: TokenizerSpec, *, runtime: Runtime, out: Output) -> TokenizerRef:
    """A tokenizer trained on the documents of the shards."""
    store = open_store(runtime)
    texts = [document.text for shard in shards for document in read_documents(store, shard)]
    if not texts:
        raise ValueError(
            f"tokenizer: expected documents to learn from, found none in {len(shards)} shards; give it a corpus"
        )
    with one_at_a_time:
        tokenizer = spec(texts)
    tokenizer.save_pretrained(out.dir)
    out.facts |= {"documents": len(texts), "vocab_size": len(tokenizer)}
    return out.ref(TokenizerRef)


@step(version=1)
def init_model(tokenizer: TokenizerRef, spec: ArchitectureSpec, *, runtime: Runtime, out: Output) -> ModelRef:
    """A model folder with random weights and the tokenizer's files."""
    folder = open_store(runtime).fetch(tokenizer)
    shutil.copytree(folder, out.dir, dirs_exist_ok=True)
    with one_at_a_time:
        from transformers import AutoModelForCausalLM

        config = spec.config(load_tokenizer(folder))
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw_weights(network, config.initializer_range, spec.seed)
    network.save_pretrained(out.dir)
    out.facts |= {"parameters": sum(p.numel() for p in network.parameters()), "vocab_size": config.vocab_size}
    return out.ref(ModelRef)


@torch.no_grad()
def draw_weights(network: torch.nn.Module, std: float, seed: int) -> None:
    """Fills every matrix with normal numbers of a standard deviation; vectors (norms, biases) stay as constructed.

    From a generator of its own: the global one is shared by all threads, so another step could change the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(network.named_parameters()):
        if parameter.ndim > 1:
            parameter.normal_(0.0, std, generator=generator)
