"""packing*.json: blocks of equal length, and the error of the level of tokens."""

import json
import re
from pathlib import Path
from typing import Any

from fusion_core.reference import pack
from tests.golden.outcome import Outcome, Tally

FILES = re.compile(r"packing.*\.json")


def check(path: Path) -> Outcome:
    tally = Tally()
    for case in json.loads(path.read_text(encoding="utf-8")):
        same = _run(case, mended=False) == case["output"]
        if case["output_iterating_a_copy"] is not None:
            same &= _run(case, mended=True) == case["output_iterating_a_copy"]
        tally.add(same)
    return tally.outcome()


def _run(case: dict[str, Any], mended: bool) -> Any:
    try:
        return pack(case["input"], case["block_size"], metric_level=case["metric_level"], mended=mended)
    except RuntimeError as error:
        return repr(error)
