"""Weight files read and written by stretches, against the library that defines the format."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.models.weights import Layout, open_weights, write_weights

TENSORS = {
    "a.odd": torch.arange(7, dtype=torch.bfloat16),
    "b.matrix": torch.arange(24, dtype=torch.float32).view(4, 6) / 7,
    "c.ids": torch.tensor([[3, -1], [2**40, 0]]),
    "d.half": torch.tensor([1.5, -2.5, 65504.0], dtype=torch.float16),
    "e.scalar": torch.tensor(0.25, dtype=torch.float64),
    "f.mask": torch.tensor([True, False, True]),
    "g.empty": torch.empty(0, 5),
}


def layouts_of(tensors: dict[str, Tensor]) -> dict[str, Layout]:
    return {name: Layout(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def in_stretches(tensors: dict[str, Tensor], size: int = 5) -> Callable[[str], Iterable[Tensor]]:
    return lambda name: tensors[name].reshape(-1).split(size) if tensors[name].numel() else ()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def read_all(folder: Path) -> dict[str, Tensor]:
    with open_weights(folder, "model") as stored:
        return {name: tensor[:].clone().view(tensor.layout.shape) for name, tensor in stored.items()}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    assert [p.name for p in write_weights(tmp_path, layouts_of(TENSORS), in_stretches(TENSORS))] == [
        "model.safetensors"
    ]
    assert_same(load_file(tmp_path / "model.safetensors"), TENSORS)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_every_tensor_lies_at_a_multiple_of_its_elements_size(tmp_path: Path) -> None:
    (file,) = write_weights(tmp_path, layouts_of(TENSORS), in_stretches(TENSORS))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0, name


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(read_all(tmp_path), TENSORS)


@pytest.mark.parametrize("limit", [1, 40, 120])
def test_files_stay_below_their_limit_and_hold_everything_once(tmp_path: Path, limit: int) -> None:
    files = write_weights(tmp_path, layouts_of(TENSORS), in_stretches(TENSORS), max_file_bytes=limit)
    assert [f.name for f in files] == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    parts = [load_file(file) for file in files]
    for part in parts:
        assert len(part) == 1 or sum(t.nbytes for t in part.values()) <= limit
    assert_same({name: tensor for part in parts for name, tensor in part.items()}, TENSORS)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    assert index["weight_map"] == {n: f.name for f, part in zip(files, parts, strict=True) for n in part}
    assert_same(read_all(tmp_path), TENSORS)


@pytest.mark.parametrize(("start", "stop"), [(0, 24), (3, 11), (23, 24), (5, 5), (20, 99)])
def test_a_stretch_is_that_of_the_flat_tensor(tmp_path: Path, start: int, stop: int) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with open_weights(tmp_path, "model") as stored:
        matrix = stored["b.matrix"]
        assert len(matrix) == 24
        assert torch.equal(matrix[start:stop], TENSORS["b.matrix"].view(-1)[start:stop])


def test_files_may_lose_their_names_while_they_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with open_weights(tmp_path, "model") as stored:
        (tmp_path / "model.safetensors").unlink()
        assert torch.equal(stored["a.odd"][0:7], TENSORS["a.odd"])


def test_stretches_that_are_not_the_tensor_are_refused(tmp_path: Path) -> None:
    layouts = layouts_of({"a": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"a: expected 12 bytes \(\[3\] of F32\), found 8"):
        write_weights(tmp_path, layouts, lambda name: [torch.zeros(2)])


def test_a_file_that_is_cut_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"tiny: model\.safetensors is no safetensors file: .*; save the model again"):
        open_weights(tmp_path, "tiny").__enter__()
    path.write_bytes(b"\x80\x02not a tensor")
    with pytest.raises(ValueError, match="is no safetensors file"):
        open_weights(tmp_path, "tiny").__enter__()


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny: expected model\.safetensors or .* found neither"):
        open_weights(tmp_path, "tiny").__enter__()
