"""Recomputes every golden file below a folder: `python -m tests.golden DIR`.

A line per file; the exit status is 1 if anything differs, a file is unknown or can't be checked, or nothing is found.
One module of this package per kind of file: `FILES` says which names it checks, `COMPANIONS` which files it reads
besides, `check(path)` what came of it.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

from tests.golden.outcome import Outcome

INPUTS = re.compile(r"README\.md|SOURCE\.txt|LICENSE.*|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json")
"""Files that are read by checks or by people."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description="Recompute every golden file below DIR."
    )
    parser.add_argument("folder", metavar="DIR", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    if not folder.is_dir():
        print(f"{folder}: expected a folder of golden files, found none there", file=sys.stderr)
        return 1
    kinds, checked, failures = find_kinds(), 0, 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not INPUTS.fullmatch(p.name)):
        name = path.relative_to(folder)
        if any(_accompanies(kind, path) for kind in kinds):
            continue
        fitting = [kind for kind in kinds if kind.FILES.fullmatch(path.name)]
        failed, line = _check(fitting[0], path) if fitting else (True, "unknown kind of file")
        print(f"{'FAIL' if failed else 'ok':4}  {name}: {line}", flush=True)
        checked += bool(fitting)
        failures += failed
    print(f"{checked} files checked, {failures} failed")
    return int(failures > 0 or checked == 0)


def find_kinds() -> list[ModuleType]:
    """The modules of this package that check a kind of file, in order of name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__main__")
    modules = [importlib.import_module(f"tests.golden.{name}") for name in names]
    return [module for module in modules if hasattr(module, "FILES")]


def _accompanies(kind: ModuleType, path: Path) -> bool:
    """Whether the file is read together with one beside it, which is checked."""
    if not hasattr(kind, "COMPANIONS") or not kind.COMPANIONS.fullmatch(path.name):
        return False
    return any(kind.FILES.fullmatch(other.name) for other in path.parent.iterdir())


def _check(kind: ModuleType, path: Path) -> tuple[bool, str]:
    try:
        outcome: Outcome = kind.check(path)
    except Exception as error:  # whatever a broken file leads to, the other files are still checked
        return True, f"can't be checked: {type(error).__name__}: {error}"
    counts = f"{outcome.cases} cases, {outcome.mismatches} mismatches, largest difference {outcome.largest:.3g}"
    return outcome.cases == 0 or outcome.mismatches > 0, counts


if __name__ == "__main__":
    sys.exit(main())
