"""Weights of a Hugging Face model folder, read and written a stretch at a time instead of a tensor at a time.

A safetensors file is eight bytes with the length of its header (little-endian), the header (JSON: each tensor's dtype,
shape and place), and the tensors' bytes, one after the other (https://github.com/huggingface/safetensors, "Format").
The library maps a file and hands out whole tensors; a merge of large models needs neither, and reads through open files
so that memory holds what is being worked on and a cache may let go of the files' names meanwhile.
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tasks.models.weight_files import WEIGHTS, WEIGHTS_INDEX, check_weights

MAX_FILE_BYTES = 2 * 10**9
"""Of a written weight file; a larger tensor has a file of its own. What is uploaded or fetched again at once."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Layout:
    """A tensor without its values: what a header says of it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return int(torch.Size(self.shape).numel())

    @property
    def bytes(self) -> int:
        """How many bytes its elements take."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{list(self.shape)} of {_NAMES[self.dtype]}"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file (`fusion_core.merging.Elements`): stretches of its elements in row-major order."""

    layout: Layout
    _stream: BinaryIO
    _start: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the stretches."""
        return self.layout.dtype

    def __len__(self) -> int:
        return self.layout.numel

    def __getitem__(self, stretch: slice, /) -> Tensor:
        size = self.dtype.itemsize
        first, last, _ = stretch.indices(len(self))
        values = torch.empty(max(0, last - first), dtype=self.dtype)
        self._stream.seek(self._start + first * size)
        found = self._stream.readinto(values.view(torch.uint8).numpy())  # type: ignore[attr-defined]
        if found != len(values) * size:
            raise OSError(f"expected {len(values) * size} bytes of a weight file, found {found}; it was cut meanwhile")
        return values


@contextlib.contextmanager
def open_weights(folder: Path, name: str) -> Iterator[dict[str, StoredTensor]]:
    """All tensors of a model folder by name; readable while the context lasts.

    name: how messages call the model.

    Raises:
        ValueError: missing files, or one that isn't a safetensors file of known types.
    """
    check_weights(folder, name)
    with contextlib.ExitStack() as stack:
        tensors: dict[str, StoredTensor] = {}
        for path in _files(folder):
            stream = stack.enter_context(path.open("rb"))
            tensors |= _read_header(stream, name)
        yield tensors


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    parts = set(json.loads((folder / WEIGHTS_INDEX).read_bytes())["weight_map"].values())
    return [folder / part for part in sorted(parts)]


def _read_header(stream: BinaryIO, name: str) -> dict[str, StoredTensor]:
    length = struct.unpack("<Q", stream.read(8))[0]
    header: dict[str, Any] = json.loads(stream.read(length))  # Any: parsed JSON
    found = {}
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{name}: {tensor}: expected a type among {', '.join(_DTYPES)}, found {entry['dtype']}; "
                "dequantise the model first"
            )
        layout = Layout(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
        found[tensor] = StoredTensor(layout, stream, 8 + length + entry["data_offsets"][0])
    return found


# ---- writing ---------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """The tensors of one file."""

    layouts: dict[str, Layout] = field(default_factory=dict)
    bytes: int = 0


def write_weights(
    folder: Path,
    layouts: Mapping[str, Layout],
    stretches: Callable[[str], Iterable[Tensor]],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> list[Path]:
    """The written files, in the layout that transformers reads: one, or several with an index.

    Tensors are cut into files in name order. Nothing is held but the stretch that is being written.

    Args:
        layouts: what will be written, by name.
        stretches: called once per name; its flat parts, in order and of that dtype, add up to the tensor.

    Raises:
        ValueError: stretches that add up to another size.
    """
    parts = _cut(layouts, max_file_bytes)
    names = (
        [WEIGHTS]
        if len(parts) == 1
        else [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    )
    for file, part in zip(names, parts, strict=True):
        _write_file(folder / file, part, stretches)
    if len(parts) > 1:
        where = {tensor: file for file, part in zip(names, parts, strict=True) for tensor in part.layouts}
        metadata = {"total_size": sum(part.bytes for part in parts)}
        index = {"metadata": metadata, "weight_map": dict(sorted(where.items()))}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [folder / file for file in names]


def _cut(layouts: Mapping[str, Layout], max_file_bytes: int) -> list[_Part]:
    parts = [_Part()]
    for name, layout in sorted(layouts.items()):
        if parts[-1].layouts and parts[-1].bytes + layout.bytes > max_file_bytes:
            parts.append(_Part())
        parts[-1].layouts[name] = layout
        parts[-1].bytes += layout.bytes
    return parts


def _write_file(path: Path, part: _Part, stretches: Callable[[str], Iterable[Tensor]]) -> None:
    # Wider types first, as the library does it: then every tensor lies at a multiple of its element's size.
    layouts = dict(sorted(part.layouts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, layout in layouts.items():
        header[name] = {"dtype": _NAMES[layout.dtype], "shape": layout.shape, "data_offsets": [end, end + layout.bytes]}
        end += layout.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, layout in layouts.items():
            before = stream.tell()
            for stretch in stretches(name):
                stream.write(stretch.contiguous().view(torch.uint8).numpy().data)
            if stream.tell() - before != layout.bytes:
                raise ValueError(
                    f"{name}: expected {layout.bytes} bytes ({layout}), found {stream.tell() - before}; "
                    "its stretches must be those of the whole tensor"
                )
