"""Drills: what the product promises under faults, tried. One line each: trials, faults, lost, wrong, longest recovery.

    python -m tests.drills [kill corruption ...] [--short] [--folder FOLDER]

Exits with 1 when a promise was broken. Everything happens below a temporary folder, or the one that is named.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tests.drills.outcome import HEADER, Skip

if TYPE_CHECKING:  # they import what reads the environment
    from tests.drills.lanes import Lane
    from tests.drills.workload import Workload

LANES = (("kill", "concurrency"), ("corruption", "disk", "soak"), ("storage",), ("restart", "clock"))
"""What is held side by side: the first two compute, the others mostly wait."""
DRILLS = tuple(name for lane in LANES for name in lane)
WITH_FLOWS = {"kill", "corruption", "disk", "restart", "soak"}
QUIET = {  # set before anything is imported that reads them
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> int:
    """Holds the drills that are named; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"which drills; all without any: {', '.join(DRILLS)}")
    parser.add_argument("--short", action="store_true", help="a few trials of each, in seconds")
    parser.add_argument("--folder", type=Path, help="where to work and leave everything; else a temporary folder")
    arguments = parser.parse_args()
    names = arguments.names or DRILLS
    if unknown := set(names) - set(DRILLS):
        parser.error(f"expected some of {', '.join(DRILLS)}, found {', '.join(sorted(unknown))}")
    os.environ |= QUIET
    with tempfile.TemporaryDirectory(prefix="llm-fuse-drills-") as temporary:
        return hold(names, arguments.folder or Path(temporary), arguments.short)


def hold(names: list[str] | tuple[str, ...], folder: Path, short: bool) -> int:
    """Holds the drills and prints their lines; 1 when a promise was broken."""
    from tests.drills.lanes import watch
    from tests.drills.workload import Workload, prefect_server, prepare

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    clock, is_kept = time.monotonic(), True
    workload = Workload(folder / "workload")
    workload.folder.mkdir(parents=True)
    with contextlib.ExitStack() as servers:
        if set(names) & WITH_FLOWS:
            servers.enter_context(prefect_server(folder / "prefect"))
            prepare(workload)
        print(HEADER, flush=True)
        lanes = [[name for name in lane if name in names] for lane in LANES]
        for outcome in watch([begin(lane, workload, short) for lane in lanes if lane]):
            print(outcome.line(), flush=True)
            is_kept = is_kept and (isinstance(outcome, Skip) or outcome.is_kept)
    print(f"{time.monotonic() - clock:.0f} s", flush=True)
    return 0 if is_kept else 1


def begin(names: list[str], workload: "Workload", short: bool) -> "Lane":
    """A lane that holds these drills, one after the other."""
    from tests.drills.lanes import begin_lane

    own = replace(workload, lane=names[0])
    drills = (import_module(f"tests.drills.{name}").drill for name in names)
    return begin_lane(names[0], lambda: (outcome for drill in drills for outcome in drill(own, short)), own.folder)


if __name__ == "__main__":
    sys.exit(main())
