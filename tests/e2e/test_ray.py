"""A cluster of two raylets on this machine makes what threads make."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows.fuse import fuse_models
from flows.recipe import Recipe
from tasks.artifacts import Runtime
from tests.conftest import ModelFactory
from tests.e2e.contents import contents
from tests.e2e.recipes import tiny_recipe

pytest.importorskip("prefect_ray", reason="pip install 'llm-fuse[ray]' brings Ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two nodes of one processor each; `RAY_ADDRESS` leads to them."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.usefixtures("cluster")
def test_two_nodes_make_the_bytes_of_one_process(
    tmp_path: Path, tiny_llama: ModelFactory, tiny_neox: ModelFactory
) -> None:
    recipe = tiny_recipe(tmp_path / "texts", tiny_llama(), tiny_neox())
    recipe = Recipe.model_validate(recipe.model_dump() | {"evaluation": None})
    with prefect_test_harness(server_startup_timeout=120):
        made = []
        for runner in ("threads", "ray"):
            runtime = Runtime.model_validate({"root": str(tmp_path / runner), "device": "cpu", "task_runner": runner})
            fuse_models(recipe, runtime)
            made.append(contents(runtime))
    assert made[0] == made[1]
