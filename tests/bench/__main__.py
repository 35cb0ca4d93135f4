"""How fast and how large the product's kernels are, each against a twin in the same run.

    python -m tests.bench [losses extraction ...] [--json build/bench.json] [--list]

Each module beside this one that has `rows()` is a benchmark; without names all of them run. The exit status is 1 if
a target is missed. By themselves run `tests.bench.exactness` and `remaining_error`, which measure errors, not time,
`merging` and `flow`.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from tests.bench.rows import Row, Skip

_VERDICTS = {True: "met", False: "MISSED", None: "-"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Times and memory against twins.")
    parser.add_argument("names", nargs="*", help="which benchmarks; all without any")
    parser.add_argument("--json", type=Path, help="where to write the table for machines")
    parser.add_argument("--list", action="store_true", help="what there is, without running it")
    args = parser.parse_args(arguments)
    modules = _find_benchmarks()
    unknown = [name for name in args.names if name not in modules]
    if unknown:
        parser.error(f"expected some of {', '.join(modules)}, found {', '.join(unknown)}")
    if args.list:
        for name, module in modules.items():
            print(f"{name:14} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    results = list(_run([module for name, module in modules.items() if name in (args.names or modules)]))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(_describe(results), indent=1) + "\n")
    return int(any(isinstance(row, Row) and row.is_met is False for row in results))


def _find_benchmarks() -> dict[str, ModuleType]:
    stems = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__main__", "rows"))
    modules = {stem: import_module(f"tests.bench.{stem}") for stem in stems}
    return {stem: module for stem, module in modules.items() if hasattr(module, "rows")}


def _run(modules: Sequence[ModuleType]) -> Iterator[Row | Skip]:
    """Every row, printed as soon as it is measured."""
    print(f"{'name':52} {'ours':>9}  {'twin':9} {'ratio':>7} {'peak MiB':>9}  target")
    for module in modules:
        for row in module.rows():
            print(_format(row), flush=True)
            yield row


def _format(row: Row | Skip) -> str:
    if isinstance(row, Skip):
        return f"{row.name:52} skipped: {row.reason}"
    peak = "-" if math.isnan(row.peak_mib) else f"{row.peak_mib:.0f}"
    figures = f"{_duration(row.seconds):>9}  {_duration(row.twin_seconds):9} {row.ratio:7.3f} {peak:>9}"
    return f"{row.name:52} {figures}  {_VERDICTS[row.is_met]}: {row.target}\n{'':63}  ({row.twin})"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _describe(results: Sequence[Row | Skip]) -> dict[str, object]:
    machine = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return machine | {"rows": [_entry(row) for row in results]}


def _entry(row: Row | Skip) -> dict[str, object]:
    if isinstance(row, Skip):
        return {"name": row.name, "skipped": row.reason}
    entry = vars(row) | {"ratio": row.ratio, "is_met": row.is_met}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in entry.items()}


if __name__ == "__main__":
    sys.exit(main())
