"""Flows: what is computed in which order. Math lives in `fusion_core`, steps and storage in `tasks`."""

import importlib.util
from pathlib import Path

_spec = importlib.util.find_spec("tasks")
_expected = Path(__file__).parent.parent / "tasks"
if _spec is None or _spec.origin is None or Path(_spec.origin).parent != _expected:
    _found = "none" if _spec is None else (_spec.origin or "a namespace package")
    raise ImportError(
        f"llm-fuse: expected its own package `tasks` at {_expected}, found {_found}; another package of that name "
        "comes first on the path: run from another folder, or install llm-fuse into a virtual environment of its own"
    )
