"""Where steps run: this process, or a cluster whose package is an extra."""

import importlib.util
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness

from flows.execution import make_task_runner
from flows.fuse import fuse_models
from flows.recipe import load_recipe
from tasks.align import align
from tasks.artifacts import Runtime
from tasks.storage.store import MANIFEST
from tests.flows.conftest import Bench

CLUSTERS = ("dask", "ray")


def is_installed(cluster: str) -> bool:
    return importlib.util.find_spec(f"prefect_{cluster}") is not None


@pytest.fixture
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_threads_are_as_many_as_the_runtime_says() -> None:
    assert make_task_runner(Runtime(max_workers=3)) == ThreadPoolTaskRunner(max_workers=3)


@pytest.mark.parametrize("cluster", [name for name in CLUSTERS if not is_installed(name)])
def test_a_missing_package_is_named_with_the_way_out(cluster: str) -> None:
    with pytest.raises(ValueError, match=rf"needs the package prefect-{cluster}.*pip install 'llm-fuse\[{cluster}\]'"):
        make_task_runner(Runtime.model_validate({"task_runner": cluster}))


def test_a_step_travels_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(align)) is align  # noqa: S301


@pytest.mark.usefixtures("_server")
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.slow
def test_a_cluster_makes_the_same_bytes(bench: Bench, tmp_path: Path, cluster: str) -> None:
    if not is_installed(cluster):
        pytest.skip(f"prefect-{cluster} is not installed")
    recipe = load_recipe(str(bench.recipe), ["evaluation=null"])
    contents = []
    for task_runner in ("threads", cluster):
        root = tmp_path / task_runner
        fuse_models(recipe, Runtime.model_validate({"root": str(root), "device": "cpu", "task_runner": task_runner}))
        contents.append(content(root))
        shutil.rmtree(root)
    assert contents[0] == contents[1]
    assert len(contents[0]) > 8


def content(root: Path) -> dict[str, bytes]:
    """Data files by step, fingerprint and name; the folder of an attempt has a name of its own each time."""
    files = (path for step in ("extract", "align", "fuse", "train") for path in (root / step).rglob("*"))
    parts = {path: path.relative_to(root).parts for path in files if path.is_file() and path.name != MANIFEST}
    return {
        "/".join(part for n, part in enumerate(where) if n != 2): path.read_bytes() for path, where in parts.items()
    }
