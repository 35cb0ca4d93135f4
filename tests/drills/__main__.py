"""Drills: what the product promises under faults, tried. One line each: trials, faults, lost, wrong, longest recovery.

    python -m tests.drills [kill corruption ...] [--short] [--folder FOLDER]

Exits with 1 when a promise was broken. Nothing outside of a temporary folder is touched.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# Before anything is imported that reads them.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}

from tests.drills import corruption, kill, storage
from tests.drills.outcome import HEADER, Skip
from tests.drills.workload import Workload, fork, prefect_server, write_workload

DRILLS = {"kill": kill.drill, "corruption": corruption.drill, "storage": storage.drill}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which drills; all without any: {', '.join(DRILLS)}")
    parser.add_argument("--short", action="store_true", help="a few trials of each, in seconds")
    parser.add_argument("--folder", type=Path, help="where to work and leave everything; else a temporary folder")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - DRILLS.keys():
        parser.error(f"expected some of {', '.join(DRILLS)}, found {', '.join(sorted(unknown))}")
    if arguments.folder:
        return hold(arguments.names or list(DRILLS), arguments.folder, arguments.short)
    with tempfile.TemporaryDirectory(prefix="llm-fuse-drills-") as name:
        return hold(arguments.names or list(DRILLS), Path(name), arguments.short)


def hold(names: list[str], folder: Path, short: bool) -> int:
    """Holds the drills and prints their lines; 1 when a promise was broken."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    clock, is_kept = time.monotonic(), True
    with prefect_server(folder / "prefect"):
        import_everything()
        assert fork(lambda: write_workload(folder / "workload") is None, folder / "log").wait() == 0, (
            folder / "log"
        ).read_text()
        workload = Workload(folder / "workload")
        print(HEADER)
        for name in names:
            for outcome in DRILLS[name](workload, short):
                print(outcome.line(), flush=True)
                is_kept = is_kept and (isinstance(outcome, Skip) or outcome.is_kept)
    print(f"{time.monotonic() - clock:.0f} s", flush=True)
    return 0 if is_kept else 1


def import_everything() -> None:
    """Imports what a run needs, so that a fork needn't. Starts no threads."""


if __name__ == "__main__":
    sys.exit(main())
