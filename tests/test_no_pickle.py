"""Nothing that is read can run: no pickle, no code of YAML or of models but where somebody trusted it by name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for layer in ("fusion_core", "tasks", "flows", "infra") for path in (ROOT / layer).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
ARCHIVES = {"tarfile", "zipfile", "rarfile", "py7zr"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
MAY_RUN = {"tasks/evaluation/confined.py": {"exec", "compile"}}  # programs that a model wrote, in the sandbox it is for
TRUSTED = {"tasks/models/folders.py", "tasks/engines/sizes.py"}  # what hands `trust_remote_code` on


def _named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
            yield from (alias.name for alias in node.names)


def _calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """The dotted name of each call, and its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg}


def problems(source: str, name: str) -> list[str]:
    """What the source reads or runs that it must not."""
    tree = ast.parse(source)
    found = [f"imports {package}" for package in _imports(tree) if package in PICKLES | ARCHIVES]
    for call, words in _calls(tree):
        last = call.split(".")[-1]
        if call in ("torch.load", "torch.package.PackageImporter") and not _is(words.get("weights_only"), True):
            found.append(f"{call} without weights_only=True")
        if last == "load" and call.split(".")[0] in ("np", "numpy") and not _is(words.get("allow_pickle"), False):
            found.append(f"{call} may read pickles")
        if last in ("read_pickle", "from_file", "unsafe_load", "full_load"):
            found.append(f"{call} may run what it reads")
        if call == "yaml.load" and not ast.unparse(words.get("Loader", ast.Constant(None))).endswith("_Loader"):
            found.append("yaml.load without a loader of plain values")
        if call in RUNNERS - MAY_RUN.get(name, set()):
            found.append(f"{call} runs what it is given")
        if _is(words.get("shell"), True):
            found.append(f"{call} with a shell")
        if "trust_remote_code" in words and (name not in TRUSTED or _is(words["trust_remote_code"], True)):
            found.append(f"{call} trusts code that nobody named")
        if last == "from_pretrained" and not _is(words.get("local_files_only"), True):
            found.append(f"{call} may go to the network")
    return found


def _is(value: ast.expr | None, constant: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is constant


@pytest.mark.parametrize("path", MODULES, ids=_named)
def test_nothing_that_is_read_can_run(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8"), _named(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from torch import package, pickle", "import joblib", "import tarfile", "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path)", "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)", "yaml.load(text)", "yaml.full_load(text)", "eval(text)",
        "subprocess.run(text, shell=True)", "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path)", "pandas.read_pickle(path)",
    ],
)  # fmt: skip
def test_what_must_not_be_there_would_be_found(source: str) -> None:
    assert problems(source, "tasks/models/folders.py") != []


@pytest.mark.parametrize("loader", ["flows.recipe_files", "tasks.evaluation.task_folder"])
def test_our_loaders_of_yaml_give_plain_values(loader: str) -> None:
    import importlib

    import yaml

    text = "a: !!python/object/apply:os.getcwd []"
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        yaml.load(text, Loader=importlib.import_module(loader)._Loader)
