"""Whether Python files that came with a model may run: for a recipe that says so, never because a store holds some.

Whoever can write to a store could put code beside any model. So the right to run it travels with the run, as
`Runtime.model_code`, which flows set for recipes that name a repository, its commit and `trust_remote_code`.
"""

import contextlib
import json
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_MAY_RUN: ContextVar[bool] = ContextVar("model_code_may_run", default=False)


@contextlib.contextmanager
def trusting_code(trusted: bool) -> Iterator[None]:
    """Within the block, on this thread, code that lies beside a model may run if `trusted`, and else may not."""
    token = _MAY_RUN.set(trusted)
    try:
        yield
    finally:
        _MAY_RUN.reset(token)


def has_code(folder: Path) -> bool:
    """Whether Python files lie in a model's folder."""
    return any(folder.glob("*.py"))


def may_run_code(folder: Path, name: str) -> bool:
    """Whether code runs that the folder brings; raises where nobody trusts it, or it is another repository's."""
    if not has_code(folder):
        return False
    if not _MAY_RUN.get():
        raise ValueError(
            f"{name}: expected no code, found {next(folder.glob('*.py')).name}, which this run doesn't trust; give the "
            "model's entry in the recipe trust_remote_code: true and its commit as revision, or set runtime.model_code"
        )
    for file in ("config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            described = json.loads((folder / file).read_bytes())
            classes = _strings(described.get("auto_map") if isinstance(described, dict) else None)
            foreign = [c for c in classes if "--" in c]
            if foreign:
                raise ValueError(
                    f"{name}: expected code of the model's own folder, found {foreign[0]!r} in {file}, which another "
                    "repository may change; copy that code into the folder"
                )
    return True


def _strings(value: Any) -> list[str]:  # Any: parsed JSON
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in _strings(item)]
