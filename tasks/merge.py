"""Merge: the weights of models of one architecture become one model's, without loading any of them.

Every tensor is read, merged and written a stretch at a time (`fusion_core.merging`), so memory depends neither on the
size of the models nor on that of their largest tensor.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusion_core.merging import MERGEABLE, STRETCH, MergeStrategy
from tasks.artifacts import ModelRef, Runtime
from tasks.models.folders import CONFIG, load_config, load_tokenizer, tied_weights, vocab_rows
from tasks.models.weight_files import WEIGHTS_INDEX
from tasks.models.weights import MAX_FILE_BYTES, StoredTensor, open_weights, write_weights
from tasks.step import Output, step
from tasks.storage.store import open_store

_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
_GEOMETRY = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation")
"""What weights of equal shapes can be used differently by."""


@step(version=1)
def merge(
    models: list[ModelRef], base: ModelRef | None, strategy: MergeStrategy, *, runtime: Runtime, out: Output
) -> ModelRef:
    """The merged model: the weights in the base's dtypes; config, tokenizer and the rest are the base's.

    Without a base the first model stands in for it. Weights that the architecture ties are written once.
    """
    strategy.check(len(models), base is not None)
    store = open_store(runtime)
    refs = [*([] if base is None else [base]), *models]
    folders = [store.fetch(ref) for ref in refs]
    names = [*([] if base is None else [f"base ({base})"]), *(f"model {i} ({ref})" for i, ref in enumerate(models))]
    check_alike(folders, names)
    _copy_companions(folders[0], out.dir)
    out.facts |= merge_weights(
        folders, names, strategy, out.dir, lambda done, total: out.progress(done, total, "bytes")
    )
    out.facts["config_differs"] = _differing_fields(folders)
    return out.ref(ModelRef)


def check_alike(folders: list[Path], names: list[str]) -> None:
    """Raises `ValueError` unless all models have the first one's architecture and vocabulary.

    names: how messages call the models. Tokens that were added later (chat markers) may differ in name.
    """
    configs = [load_config(folder, name) for folder, name in zip(folders, names, strict=True)]
    vocabularies = [
        load_tokenizer(folder, name).backend_tokenizer.get_vocab(with_added_tokens=False)
        for folder, name in zip(folders, names, strict=True)
    ]
    for config, vocabulary, name in zip(configs[1:], vocabularies[1:], names[1:], strict=True):
        if config.model_type != configs[0].model_type:
            raise ValueError(
                f"{name}: expected a {configs[0].model_type} model as {names[0]} is, found {config.model_type}; "
                "models of different architectures are fused, not merged"
            )
        for field in _GEOMETRY:
            if getattr(config, field, None) != getattr(configs[0], field, None):
                raise ValueError(
                    f"{name}: expected {field} {getattr(configs[0], field, None)} as {names[0]} has, found "
                    f"{getattr(config, field, None)}; models that use equal weights differently are fused, not merged"
                )
        if vocab_rows(config) != vocab_rows(configs[0]):
            raise ValueError(
                f"{name}: expected a vocabulary of {vocab_rows(configs[0])} as {names[0]} has, found "
                f"{vocab_rows(config)}; resize the embeddings of one to the other's and save it again, or fuse them"
            )
        differing = sorted(dict(vocabulary.items() ^ vocabularies[0].items()))
        if differing:
            token = differing[0]
            raise ValueError(
                f"{name}: expected the tokens of {names[0]}, found {len(differing)} others ({token!r} is id "
                f"{vocabulary.get(token)}, not {vocabularies[0].get(token)}); models that read other tokens are "
                "fused, not merged"
            )


def merge_weights(
    folders: list[Path],
    names: list[str],
    strategy: MergeStrategy,
    target: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> dict[str, object]:
    """Writes the merged weights into a folder; what was merged, as facts.

    Args:
        folders: of the models, the base first if the strategy takes one; the first decides names, shapes and dtypes.
        names: how messages call them.
        report: called with the bytes written so far and in all.

    Raises:
        ValueError: a tensor that a model lacks, has too much or in another shape; one that isn't made of floating
            point numbers and differs; what the strategy refuses.
    """
    with contextlib.ExitStack() as stack:
        sources = [
            _Source(name, stack.enter_context(open_weights(folder, name)), tied_weights(folder, name))
            for folder, name in zip(folders, names, strict=True)
        ]
        operands = _match(sources)
        layouts = {tensor: stored[0].layout for tensor, stored in operands.items()}
        total, done = sum(layout.bytes for layout in layouts.values()), 0

        def merged(tensor: str) -> Iterator[Tensor]:
            nonlocal done
            for part in _merge_tensor(tensor, operands[tensor], strategy, names):
                yield part
                done += part.nbytes
                report(done, total)

        files = write_weights(target, layouts, merged, max_file_bytes)
    floating = [layout for layout in layouts.values() if layout.dtype in MERGEABLE]
    return {
        "strategy": strategy.kind,
        "tensors": len(layouts),
        "copied_tensors": len(layouts) - len(floating),
        "parameters": sum(layout.numel for layout in floating),
        "weight_bytes": total,
        "weight_files": len(files),
    }


# ---- which tensors belong together -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A model's stored tensors; `tied`: weights that its architecture repeats, and what they repeat."""

    name: str
    tensors: dict[str, StoredTensor]
    tied: dict[str, str]

    def find(self, tensor: str) -> StoredTensor | None:
        """What the model computes with under this name, also where only its twin is stored."""
        twins = [alias for alias, original in self.tied.items() if original == tensor]
        stored = (self.tensors.get(n) for n in (self.tied.get(tensor, tensor), tensor, *twins))
        return next((found for found in stored if found is not None), None)

    @property
    def distinct(self) -> list[str]:
        """The stored names without those that repeat another stored one."""
        return [name for name in self.tensors if self.tied.get(name) not in self.tensors]


def _match(sources: list[_Source]) -> dict[str, list[StoredTensor]]:
    """Per tensor of the first model, what every model has for it, in their order."""
    first = sources[0]
    matched = {tensor: [first.tensors[tensor]] for tensor in first.distinct}
    for source in sources[1:]:
        for tensor, stored in matched.items():
            found, expected = source.find(tensor), stored[0].layout
            if found is None or found.layout.shape != expected.shape:
                raise ValueError(
                    f"{source.name}: {tensor}: expected {expected} as in {first.name}, found "
                    f"{'no such tensor' if found is None else found.layout}; only models of one architecture can "
                    "be merged"
                )
            stored.append(found)
        unmatched = [
            tensor for tensor in source.distinct if first.find(tensor) is None or _untied(tensor, first, source)
        ]
        if unmatched:
            raise ValueError(
                f"{source.name}: expected the {len(matched)} tensors of {first.name}, found {len(unmatched)} more "
                f"({sorted(unmatched)[0]}); only models of one architecture can be merged (if just one of them ties "
                "its output layer to its embedding, let the one that doesn't be the base or the first model)"
            )
    return matched


def _untied(tensor: str, first: _Source, source: _Source) -> bool:
    """Whether a tensor of its own in one model is but a repetition in the first."""
    return first.tied.get(tensor) is not None and tensor not in source.tied


def _merge_tensor(
    tensor: str, stored: list[StoredTensor], strategy: MergeStrategy, names: list[str]
) -> Iterable[Tensor]:
    if any(operand.dtype in MERGEABLE for operand in stored):
        base, models = (stored[0], stored[1:]) if strategy.needs_base else (None, stored)
        return strategy.stream(models, base, tensor)
    return _copy_equal(tensor, stored, names)


def _copy_equal(tensor: str, stored: list[StoredTensor], names: list[str]) -> Iterator[Tensor]:
    """The first model's values, which all others must share: indices and masks have no mean."""
    for start in range(0, len(stored[0]), STRETCH):
        parts = [operand[start : start + STRETCH] for operand in stored]
        for part, name in zip(parts, names, strict=True):
            if not torch.equal(part, parts[0]):
                raise ValueError(
                    f"{name}: {tensor}: expected the values of {names[0]}, found others, and {part.dtype} can't be "
                    "merged; if the model is quantised, dequantise it first"
                )
        yield parts[0]


# ---- what comes with the weights -------------------------------------------------------------------------


def _copy_companions(folder: Path, target: Path) -> None:
    """Copies what belongs to a model besides its weights."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors" and path.name != WEIGHTS_INDEX:
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _differing_fields(folders: list[Path]) -> list[str]:
    """Fields of the configs that not all models share; the result has the first one's."""
    configs = [json.loads((folder / CONFIG).read_bytes()) for folder in folders]
    fields = {field for config in configs for field in config} - _NOT_ARCHITECTURE
    return sorted(field for field in fields if any(c.get(field) != configs[0].get(field) for c in configs))
