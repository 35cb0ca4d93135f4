"""The house's one-way imports, read from every module's syntax tree, lazy imports included."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWNERS = {  # package -> the rooms and modules of tasks/ that may import it
    "transformers": {"models.folders", "models.generation", "models.chat_template", "engines", "training", "scratch"},
    "tokenizers": {"models.folders", "engines.encoding", "scratch"},
    "datasets": {"corpora.document_sources"},
    "lm_eval": {"evaluation.harness"},
    "s3fs": {"storage.store"},
    "huggingface_hub": {"models.hub", "models.hub_upload", "download", "publishing.card"},
    "vllm": {"engines"},
    "prefect": {"step", "running.slots"},
}
STDLIB_FILES = {"pathlib", "os", "io", "shutil", "tempfile", "logging", "subprocess", "socket"}
CORE_MAY = {"torch", "numpy", "numba", "pydantic", "jaxtyping", "fusion_core", "llvmlite"}


def _modules(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    """(top-level package, full dotted name) of every import in the file, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            assert node.module is not None
            yield node.module.split(".")[0], node.module


def _is_stdlib(package: str) -> bool:
    import sys

    return package in sys.stdlib_module_names


@pytest.mark.parametrize("path", _modules("fusion_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_math_imports_only_math(path: Path) -> None:
    for package, _ in _imports(path):
        assert package in CORE_MAY or _is_stdlib(package), f"{path.name} imports {package}"
        assert package not in STDLIB_FILES, f"{path.name} imports {package}: math has no files, processes or logs"
    assert ".cuda(" not in path.read_text()


@pytest.mark.parametrize("path", _modules("tasks"), ids=lambda p: str(p.relative_to(ROOT)))
def test_steps_know_no_flow_and_packages_have_owners(path: Path) -> None:
    place = ".".join(path.relative_to(ROOT / "tasks").with_suffix("").parts)
    for package, name in _imports(path):
        assert package not in ("flows", "infra"), f"{path.name} imports {name}"
        if package in OWNERS:
            owners = OWNERS[package]
            assert any(f"{place}.".startswith(f"{owner}.") for owner in owners), f"{place} imports {name}, of {owners}"


def _step_modules() -> set[str]:
    found = set()
    for path in _modules("tasks"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                "step" in ast.unparse(d).split("(")[0].split(".") for d in node.decorator_list
            ):
                found.add(path.relative_to(ROOT / "tasks").parts[0].removesuffix(".py"))
    return found


def test_no_step_imports_another_step() -> None:
    steps = _step_modules()
    assert {"extract", "align", "fuse", "train"} <= steps
    for path in _modules("tasks"):
        owner = path.relative_to(ROOT / "tasks").parts[0].removesuffix(".py")
        if owner not in steps:
            continue
        for package, name in _imports(path):
            if package == "tasks" and name.count("."):
                imported = name.split(".")[1]
                assert imported == owner or imported not in steps, f"{path.name} imports the step {imported}"


@pytest.mark.parametrize("path", _modules("flows"), ids=lambda p: str(p.relative_to(ROOT)))
def test_flows_hold_no_math_and_no_storage(path: Path) -> None:
    forbidden = {"torch", "numpy", "numba", "transformers", "datasets", "s3fs", "safetensors"}
    for package, name in _imports(path):
        assert package not in forbidden, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", _modules("infra"), ids=lambda p: str(p.relative_to(ROOT)))
def test_infra_imports_no_project_code(path: Path) -> None:
    for package, name in _imports(path):
        assert package not in ("flows", "tasks", "fusion_core"), f"{path.name} imports {name}"


def test_no_module_shadows_an_importable_package() -> None:
    taken = {"datasets", "evaluate", "transformers", "torch", "prefect", "types"}
    for path in _modules("flows"):
        assert path.stem not in taken, f"flows/{path.name} would shadow the package {path.stem}"


def test_the_rooms_of_tasks_lean_on_each_other_one_way() -> None:
    leans: dict[str, set[str]] = {}
    for path in _modules("tasks"):
        room = path.relative_to(ROOT / "tasks").parts[0].removesuffix(".py")
        names = [name.split(".") for package, name in _imports(path) if package == "tasks"]
        leans.setdefault(room, set()).update(name[1] for name in names if len(name) > 1 and name[1] != room)
    TopologicalSorter(leans).prepare()  # raises CycleError, which names the rooms
