"""A step's meaning changes only with its version.

Each step's function, and every project function and class it can reach, is hashed without comments,
docstrings and formatting.
`step_versions.json` holds what was recorded for each version. When a hash differs, either the meaning
changed: bump `@step(version=...)`; or it did not (a refactoring, a message): record it as the same meaning.
Both end with `make versions STEPS="extract align"`.
"""

import ast
import copy
import functools
import hashlib
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "step_versions.json"
# Reached by every step, and no part of any result's meaning: how results are cached, found and told.
# Calls that no import shows: what a step starts as a child process.
STARTED = {
    ("tasks.train", "train"): ("tasks.training.child", "run_training"),
    ("tasks.evaluate_tasks", "evaluate_tasks"): ("tasks.evaluation.harness", "run_harness"),
    ("tasks.evaluate_code", "evaluate_code"): ("tasks.evaluation.confined", "main"),
}
EXECUTION = {
    "tasks.step",
    "tasks.running.job",
    "tasks.running.planning",
    "tasks.storage.store",
    "tasks.storage.claims",
    "tasks.running.progress",
    "tasks.running.transient",
    "tasks.running.environment",
    "tasks.runtime",
}


class _WithoutWords(ast.NodeTransformer):
    """Drops docstrings and the words of messages and form fields: they change no result."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return (
            None
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            else self.generic_visit(node)
        )

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg in ("title", "description") else self.generic_visit(node)


@functools.cache
def _module(name: str) -> tuple[dict[str, ast.AST], dict[str, tuple[str, str]]]:
    """(definitions, names imported from the project) of a module; empty for what is no module of ours."""
    stem = ROOT / Path(*name.split("."))
    path = next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.exists()), None)
    definitions: dict[str, ast.AST] = {}
    imported: dict[str, tuple[str, str]] = {}
    if path is None or name in EXECUTION:
        return definitions, imported
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions |= {t.id: node for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("fusion_core", "tasks"):
            imported |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return definitions, imported


def _reach(module: str, name: str, seen: dict[tuple[str, str], str]) -> None:
    """Adds to `seen` the normalised code of a definition and of every project definition that it names."""
    definitions, imported = _module(module)
    if (module, name) in seen:
        return
    if name not in definitions:
        if name in imported:
            _reach(*imported[name], seen)
        return
    node = definitions[name]
    seen[module, name] = ast.dump(_WithoutWords().visit(copy.deepcopy(node)))
    for used in ast.walk(node):
        if isinstance(used, ast.Name):
            _reach(module, used.id, seen)
    if (module, name) in STARTED:
        _reach(*STARTED[module, name], seen)


def code_hash(module: str, name: str) -> str:
    reached: dict[tuple[str, str], str] = {}
    _reach(module, name, reached)
    return hashlib.sha256(json.dumps(sorted([*key, code] for key, code in reached.items())).encode()).hexdigest()[:16]


def found_steps() -> dict[str, dict[str, object]]:
    from tasks.step import Step

    steps: dict[str, dict[str, object]] = {}
    for path in sorted((ROOT / "tasks").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, Step) and value.body.__module__ == module:
                steps[value.name] = {"version": value.version, "code": code_hash(module, value.name)}
    return steps


def test_code_of_a_step_changes_only_with_its_version_or_a_mark() -> None:
    recorded, found = json.loads(RECORD.read_text()), found_steps()
    changed = [name for name, facts in found.items() if recorded.get(name) != facts]
    gone = [name for name in recorded if name not in found]
    differing = changed + gone
    assert not differing, (
        f"code of {', '.join(differing)} differs from the record: bump the step's version if its results mean "
        f'something else now, then `make versions STEPS="{" ".join(differing)}"`'
    )


def test_a_step_reaches_the_math_it_calls_through_other_modules() -> None:
    reached: dict[tuple[str, str], str] = {}
    _reach("tasks.fuse", "fuse", reached)
    assert ("fusion_core.fusion", "MinCE") in reached
    assert ("tasks.formats.shards", "read_aligned") in reached
    assert not any(module in EXECUTION for module, _ in reached)


def test_training_reaches_the_loss_though_it_runs_in_a_child() -> None:
    reached: dict[tuple[str, str], str] = {}
    _reach("tasks.train", "train", reached)
    assert {("tasks.training.loss", "LossHead"), ("fusion_core.losses", "fusion_loss")} <= reached.keys()


def test_hash_sees_code_but_not_words() -> None:
    def digest(text: str) -> str:
        return ast.dump(_WithoutWords().visit(ast.parse(text)))

    code = 'def f(x):\n    """Doc."""\n    return x + 1\n'
    assert digest(code) == digest("def f(x):\n    # said otherwise\n    return x+1")
    assert digest(code) != digest("def f(x):\n    return x + 2")


def record(names: list[str]) -> None:
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found = found_steps()
    wanted = names or list(found)
    kept = {name: facts for name, facts in known.items() if name in found and name not in wanted}
    merged = kept | {name: found[name] for name in wanted}
    RECORD.write_text(json.dumps(dict(sorted(merged.items())), indent=1) + "\n")


if __name__ == "__main__":
    record(sys.argv[1:])
