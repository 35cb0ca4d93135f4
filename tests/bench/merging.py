"""How much memory and time does a merge take? Measured on models of 7B shapes with few layers.

Tensors are Llama-2-7B's (embedding 32000 x 4096), or, with `--vocab 152064`, those of a model with a large vocabulary.
Two models of random bfloat16 weights are written, and each strategy merges them in a process of its own; for those with
a base the first model is the base too, which changes no memory. The peak is the process's own (`VmHWM`), and what the
process had before it began to merge is told beside it.

    python -m tests.bench.merging [--layers 1] [--vocab 32000] [--folder DIR] [--json FILE]
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from pydantic import TypeAdapter

from fusion_core.merging import STRETCH, Dare, Linear, MergeStrategy, Sce, Slerp, TaskArithmetic, Ties
from tasks.merge import merge_weights
from tasks.models.folders import tied_weights
from tasks.models.weights import Layout, write_weights

STRATEGIES: list[MergeStrategy] = [
    Linear(),
    Slerp(),
    TaskArithmetic(scales=(0.5,)),
    Ties(),
    Dare(elect_sign=True),
    Sce(density=0.1),
]
HIDDEN, INNER, LAYERS_OF_7B = 4096, 11008, 32


def shapes_of(layers: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama with an output layer of its own."""
    square, wide, narrow = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    per_layer = {f"self_attn.{n}_proj": square for n in "qkvo"} | {"mlp.gate_proj": wide, "mlp.up_proj": wide}
    per_layer |= {"mlp.down_proj": narrow, "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, HIDDEN),
        "lm_head.weight": (vocab, HIDDEN),
    }
    shapes["model.norm.weight"] = (HIDDEN,)
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in per_layer.items()}
    return shapes


def write_model(folder: Path, layers: int, vocab: int, seed: int) -> None:
    """Writes random weights with a config."""
    folder.mkdir()
    shapes = shapes_of(layers, vocab)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "vocab_size": vocab}
    config |= {"intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 32}
    (folder / "config.json").write_text(json.dumps(config))
    noise = torch.randn(STRETCH, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def stretches(name: str) -> list[torch.Tensor]:
        size = math.prod(shapes[name])
        return [noise[: min(STRETCH, size - start)] for start in range(0, size, STRETCH)]

    write_weights(folder, {n: Layout(torch.bfloat16, shape) for n, shape in shapes.items()}, stretches)


def count_parameters(layers: int, vocab: int) -> int:
    """Of a model of so many layers."""
    return sum(math.prod(shape) for shape in shapes_of(layers, vocab).values())


def peak_mib() -> float:
    """The most memory that this process ever had in RAM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def merge_here(strategy: MergeStrategy, folder: Path) -> None:
    """The child: merges and prints what it took as JSON."""
    folders, names = [folder / "a", folder / "b"], ["a", "b"]
    if strategy.needs_base:
        folders, names = [folders[0], *folders], ["base", *names]
    tied_weights(folders[0])  # what transformers and torch take is there before
    before, start = peak_mib(), time.perf_counter()
    (folder / "merged").mkdir()
    merge_weights(folders, names, strategy, folder / "merged")
    print(json.dumps({"before_mib": before, "peak_mib": peak_mib(), "seconds": time.perf_counter() - start}))


def measure(strategy: MergeStrategy, folder: Path) -> dict[str, float]:
    """What a process that does nothing but this merge took."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.merging",
        "--child",
        strategy.model_dump_json(),
        "--folder",
        str(folder),
    ]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    finally:
        for path in (folder / "merged").glob("*"):
            path.unlink()
        (folder / "merged").rmdir()
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(layers: int, vocab: int, folder: Path) -> dict[str, dict[str, float]]:
    """What each strategy took, printed as a table on the way. `folder` holds up to three models meanwhile."""
    for seed, part in enumerate("ab"):
        write_model(folder / part, layers, vocab, seed)
    parameters, whole = count_parameters(layers, vocab), count_parameters(LAYERS_OF_7B, vocab)
    print(f"two models of {parameters / 1e6:.0f} M parameters, largest tensor {vocab} x {HIDDEN}, bfloat16")
    print(f"{'strategy':16} {'before, MiB':>12} {'peak, MiB':>10} {'seconds':>8} {'minutes for all':>16}")
    results = {}
    for strategy in STRATEGIES:
        found = results[strategy.kind] = measure(strategy, folder)
        found["minutes_for_all"] = found["seconds"] * whole / parameters / 60
        print(f"{strategy.kind:16} {found['before_mib']:12.0f} {found['peak_mib']:10.0f}", end=" ")
        print(f"{found['seconds']:8.1f} {found['minutes_for_all']:16.1f}")
    print(f"for all: {whole / 1e9:.1f} B parameters, {LAYERS_OF_7B} layers, at the same time per parameter")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--folder", type=Path, help="where three times a model's size is written, and deleted")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        merge_here(TypeAdapter(MergeStrategy).validate_json(args.child), args.folder)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        results = run(args.layers, args.vocab, Path(name))
    if args.json:
        report = {"layers": args.layers, "vocab": args.vocab, "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
