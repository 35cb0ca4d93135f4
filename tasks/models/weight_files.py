"""The weight files of a model folder: which there must be, and that each has room for what its header declares."""

import json
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def check_weights(folder: Path, name: str, *, rows: int = 0, layers: int = 0) -> None:
    """Raises `ValueError` unless all safetensors files of the model are there, and whole.

    rows, layers: of the model that its config describes; refused where the files can't hold so many. Whoever builds
    the model makes room for them, with weights of its own where the files have none.
    """
    files = _weight_files(folder, name)
    sizes = [(len(_tensors(file, name)), file.stat().st_size) for file in files]
    tensors, size = (sum(column) for column in zip(*sizes, strict=True))
    if layers > tensors or rows > size:
        raise ValueError(
            f"{name}: expected weights of {layers:,} layers and {rows:,} rows, as its config.json describes, "
            f"found {tensors:,} tensors in {size:,} bytes; save model and config again, together"
        )


def _weight_files(folder: Path, name: str) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        raise ValueError(
            f"{name}: expected {WEIGHTS} or {WEIGHTS_INDEX}, found neither; save the model with save_pretrained"
        )
    parts = _parts_of(index, name)
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        raise ValueError(
            f"{name}: expected the {len(parts)} weight files that {WEIGHTS_INDEX} names, "
            f"found {len(parts) - len(missing)} (without {missing[0]}); complete the folder"
        )
    return [folder / part for part in parts]


def check_complete(found: dict[str, Any], name: str) -> None:  # Any: transformers' report of what it loaded
    """Raises `ValueError` for weights that transformers made up, as it does for those that it doesn't find."""
    odd = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if odd:
        raise ValueError(
            f"{name}: expected the weights that its config.json describes, found {len(odd)} missing or of another "
            f"shape ({odd[0]}); save model and config again, together"
        )


def _parts_of(index: Path, name: str) -> list[str]:
    """The weight files that an index names, all of them beside it."""
    try:
        parts = sorted({str(part) for part in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{name}: expected a weight_map from tensors to files in {index.name}, found none that can be read "
            f"({type(error).__name__}); save the model again"
        ) from error
    if odd := [part for part in parts if Path(part).name != part or "\0" in part]:
        raise ValueError(f"{name}: expected {index.name} to name files beside it, found {odd[0]!r}; save it again")
    return parts


def _tensors(path: Path, name: str) -> list[str]:
    """The names in a weight file. Raises `ValueError` unless it has room for exactly what its header declares."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # maps the file: nothing is allocated for what a header claims
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{name}: {path.name} is no safetensors file: {error}; save the model again") from error
