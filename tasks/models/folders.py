"""Hugging Face model folders: which model a recipe means, what such a folder must hold, and reading it.

The one owner of transformers' loading functions. Folders are read from this machine alone, weights from
safetensors alone. Code that comes with a model runs only when its `*.py` files are in the folder, and
`download` puts them there only for a model whose entry in the recipe says `trust_remote_code`.
"""

import functools
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from pydantic import AfterValidator, Field, model_validator

from fusion_core.spec import PINNED, Spec
from fusion_core.types import Tokens
from fusion_core.vocab_mapping import Encode
from fusion_core.vocabulary import Vocabulary, read_vocabulary, token_boundaries, without_prefix_space
from tasks.models.chat_template import ChatTemplate
from tasks.models.hub import COMMIT, check_repo_id, check_revision
from tasks.models.trust import has_code, may_run_code
from tasks.models.weight_files import check_complete, check_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CONFIG = "config.json"
_WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_LARGEST = {"num_hidden_layers": 10_000, "hidden_size": 1_000_000, "vocab_size": 10_000_000}

one_at_a_time = threading.RLock()
"""transformers patches torch for the whole process while it builds a model, and its lazy imports race: two threads at
once leave weights untied, on the meta device, or names that can't be imported."""


class HubModel(Spec):
    """A model of the Hugging Face hub. Its identity is the commit that the revision names at launch."""

    kind: Literal["hub"] = "hub"
    id: Annotated[str, AfterValidator(check_repo_id)] = Field(title="Repository", description="owner/name on the hub.")
    revision: Annotated[str, AfterValidator(check_revision), PINNED] = Field(
        "main", title="Revision", description="Branch, tag or commit; resolved to a commit at launch."
    )
    trust_remote_code: bool = Field(
        False, title="Trust its code", description="Mirror and run its Python files; its revision must be a commit."
    )
    chat_template: ChatTemplate = None

    @model_validator(mode="after")
    def _trusts_what_it_names(self) -> "HubModel":
        if self.trust_remote_code and not COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"expected the revision of a model whose code is trusted to be a commit of 40 hex digits, found "
                f"{self.revision!r}, which may name other code tomorrow; take the commit that you have read"
            )
        return self


class LocalModel(Spec):
    """A model folder of this machine. Its identity is the content of its files, wherever they lie."""

    kind: Literal["local"] = "local"
    path: Annotated[str, PINNED] = Field(
        title="Folder", description="With config.json, tokenizer files and safetensors weights.", min_length=1
    )
    chat_template: ChatTemplate = None


ModelSpec = Annotated[HubModel | LocalModel, Field(discriminator="kind")]


# ---- checks ----------------------------------------------------------------------------------------------


def check_readable(folder: Path, name: str) -> None:
    """Raises `ValueError` unless config and tokenizer can be read and fit each other; needs no weights.

    name: how messages call the model.
    """
    config = load_config(folder, name)
    rows = vocab_rows(config)
    ids = max(load_tokenizer(folder, name).get_vocab().values()) + 1
    if ids > rows:
        raise ValueError(
            f"{name}: expected a tokenizer of at most {rows} ids, one per row of the model's embedding, found {ids}; "
            "resize the model's embeddings and save it again, or use the tokenizer that it was trained with"
        )


def vocab_rows(config: "PretrainedConfig") -> int:
    """Rows of the model's embedding; the tokenizer's ids come first, what follows them is padding."""
    return int(config.get_text_config().vocab_size)


def context_window(config: "PretrainedConfig") -> int | None:
    """Tokens that the model reads at most, special ones included; None when its config names no limit."""
    text_config = config.get_text_config()
    found = (getattr(text_config, name, None) for name in _WINDOW_NAMES)
    return next((int(tokens) for tokens in found if tokens), None)


def tied_weights(folder: Path, name: str = "") -> dict[str, str]:
    """Names of weights that the model only repeats, each with the name of what it repeats; empty for none.

    The output layer of many models repeats their embedding; files may hold both, or the latter alone.
    """
    config = load_config(folder, name)
    with one_at_a_time:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=has_code(folder))
    return dict(model.all_tied_weights_keys)


# ---- loading ---------------------------------------------------------------------------------------------


def load_config(folder: Path, name: str = "") -> "PretrainedConfig":
    """The model's configuration. Raises `ValueError` when there is none or its architecture is unknown."""
    name = name or str(folder)
    _require_folder(folder, name)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{name}: expected a {CONFIG}, found none; is this a Hugging Face model folder?")
    trusted = may_run_code(folder, name)
    try:
        with one_at_a_time:
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # what a broken config raises depends on its model's class
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name}: its architecture is defined by Python files of its own; "
                "if you trust them, set trust_remote_code: true for this model"
            ) from error
        raise ValueError(f"{name}: {CONFIG} can't be read: {_first_line(error)}") from error
    _check_scale(config, name)
    return cast("PretrainedConfig", config)


def _check_scale(config: "PretrainedConfig", name: str) -> None:
    """Raises `ValueError` for sizes that no model has: building one takes time and room even without its weights."""
    text_config = config.get_text_config()
    for field, most in _LARGEST.items():
        if isinstance(found := getattr(text_config, field, None), int) and found > most:
            raise ValueError(f"{name}: expected {field} of at most {most:,} in {CONFIG}, found {found:,}; correct it")


def load_model(
    folder: Path, dtype: "torch.dtype | str" = "auto", device: "torch.device | str" = "cpu", **options: Any
) -> "PreTrainedModel":
    """The causal language model in evaluation mode on a device.

    dtype: of the weights; "auto" keeps that of the files. options: of `from_pretrained`; a `device_map` decides alone.
    Raises `ValueError` for a folder that isn't a causal language model with safetensors weights.
    """
    config = load_config(folder)
    check_weights(
        folder, str(folder), rows=vocab_rows(config), layers=getattr(config.get_text_config(), "num_hidden_layers", 0)
    )
    try:
        with one_at_a_time:
            from transformers import AutoModelForCausalLM

            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=has_code(folder),
                output_loading_info=True,
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # shapes that differ, too: transformers refuses them before it makes room for them
        raise ValueError(f"{folder}: its {CONFIG} describes a model that can't be: {_first_line(error)}") from error
    check_complete(found, str(folder))
    return cast("PreTrainedModel", (model if "device_map" in options else model.to(device)).eval())


def load_tokenizer(folder: Path, name: str = "") -> "PreTrainedTokenizerFast":
    """The tokenizer. Raises `ValueError` when there is none, or none with the Rust backend."""
    name = name or str(folder)
    _require_folder(folder, name)
    trusted = may_run_code(folder, name)
    try:
        with one_at_a_time:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # depends on the broken tokenizer's kind: anything from KeyError to pyo3's own
        raise ValueError(
            f"{name}: expected tokenizer files (tokenizer.json), found none that can be read: {_first_line(error)}"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None or not len(tokenizer):
        raise ValueError(
            f"{name}: expected a tokenizer with the Rust backend (tokenizer.json), found {type(tokenizer).__name__} of "
            f"{len(tokenizer)} tokens; convert it once with transformers and save it beside the model"
        )
    _check_ids(tokenizer, name)
    return cast("PreTrainedTokenizerFast", tokenizer)


def _check_ids(tokenizer: "PreTrainedTokenizerFast", name: str) -> None:
    """Raises `ValueError` for ids far above their number: what lists them by id would take all memory."""
    ids = tokenizer.get_vocab().values()
    if max(ids) >= 16 * len(ids) + 2**16:
        raise ValueError(
            f"{name}: expected token ids without large gaps, found {len(ids):,} of them up to {max(ids):,}; "
            "save the tokenizer that the model was trained with"
        )


def load_vocabulary(folder: Path) -> Vocabulary:
    """The byte surface of every id of the folder's tokenizer."""
    return vocabulary_of(load_tokenizer(folder))


def vocabulary_of(tokenizer: "PreTrainedTokenizerFast") -> Vocabulary:
    """The byte surface of every id of a loaded tokenizer, and its special tokens' roles.

    Read from the backend that does the work: a tokenizer class may build another one than the file describes.
    """
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")}
    known = {role: token for role, token in roles.items() if token is not None}
    return read_vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()), known)


# ---- encoding --------------------------------------------------------------------------------------------


def encode_documents(
    tokenizer: "PreTrainedTokenizerFast", vocabulary: Vocabulary, texts: Sequence[str], ends: Sequence[bool]
) -> Tokens:
    """The tokens of documents, as a model reads them.

    Every document begins with the model's begin token (its end token where it has no other, nothing where it has
    neither) and ends with its end token where `ends` says that the text is complete. What looks like a special
    token in a text is text. An empty text has special tokens only.

    Args:
        tokenizer: its truncation, padding and treatment of special tokens are switched off on the way.
        vocabulary: of this tokenizer (`vocabulary_of`).
        ends: per text, whether its document ends there; False for a piece that others follow.

    Raises:
        ValueError: another number of `ends` than of texts.
    """
    if len(texts) != len(ends):
        raise ValueError(f"expected one end mark per text, found {len(ends)} for {len(texts)} texts; pass both")
    backend = _plain(tokenizer.backend_tokenizer)
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    roles = vocabulary.roles
    begin = [roles[role] for role in ("bos", "eos") if role in roles][:1]
    end = [roles["eos"]] if "eos" in roles else []

    def join(parts: list[list[Any]], at_begin: list[Any], at_end: list[Any]) -> list[list[Any]]:  # ids, or their spans
        return [at_begin + part + (at_end if is_end else []) for part, is_end in zip(parts, ends, strict=True)]

    return place_tokens(
        vocabulary,
        texts,
        join([e.ids for e in encodings], begin, end),
        lambda: join([e.offsets for e in encodings], [(0, 0)] * len(begin), [(0, 0)] * len(end)),
    )


def place_tokens(
    vocabulary: Vocabulary, texts: Sequence[str], documents: list[list[int]], spans: Callable[[], list[list[Any]]]
) -> Tokens:
    """The tokens of texts from their ids, with boundaries; the tokenizer's own spans are asked for only at need."""
    ids, offsets = _concatenate(documents), torch.tensor([0, *map(len, documents)]).cumsum(0)
    contents = [text.encode() for text in texts]
    places = token_boundaries(vocabulary, ids, offsets, contents)
    if places.differs_at:  # the tokenizer changed a text: only its own offsets can tell where tokens end there
        places = token_boundaries(vocabulary, ids, offsets, contents, _concatenate(spans()).reshape(-1, 2))
    return Tokens(ids=ids, boundaries=places.boundaries, doc_offsets=offsets)


def _concatenate(documents: list[list[Any]]) -> torch.Tensor:
    return torch.tensor(list(itertools.chain.from_iterable(documents)), dtype=torch.int64)


def encode_mid_text(tokenizer: "PreTrainedTokenizerFast") -> Encode:
    """A function that cuts strings as the tokenizer cuts them in the middle of a text.

    No special tokens are added or recognised, and no space is put in front; a leading space of the string counts.
    """
    return load_encode(mid_text_json(tokenizer))


def mid_text_json(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The tokenizer for the middle of texts as JSON text, to be stored and given to `load_encode`."""
    return json.dumps(without_prefix_space(json.loads(tokenizer.backend_tokenizer.to_str())))


def load_encode(tokenizer_json: str) -> Encode:
    """The function that `encode_mid_text` gives, from stored JSON; the tokenizer is built when it is first called."""

    @functools.cache
    def backend() -> "Tokenizer":
        from tokenizers import Tokenizer

        return _plain(Tokenizer.from_str(tokenizer_json))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in backend().encode_batch_fast(list(texts), add_special_tokens=False)]

    return encode


def _plain(backend: "Tokenizer") -> "Tokenizer":
    """The same backend, set to cut whole texts as nothing but text."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


# ---- folders ---------------------------------------------------------------------------------------------


def _require_folder(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"{name}: expected a model folder, found {'a file' if folder.exists() else 'nothing'} there; check the path"
        )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
