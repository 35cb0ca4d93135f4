"""Garbage collection beside a run that has been going on for long: nothing that it made is taken from it."""

from collections.abc import Callable, Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows.cli.launch import launch
from flows.collect_garbage import collect_garbage
from flows.evaluation import Candidate, evaluate_model
from flows.extract import extract_source
from flows.fuse import fuse_models
from flows.inspect_recipe import inspect_recipe
from flows.recipe import Recipe, load_recipe
from tasks.artifacts import Runtime
from tasks.library.lineage import runs
from tasks.models.folders import LocalModel
from tasks.running.progress import Event, listening
from tasks.storage.store import open_store
from tests.flows.conftest import Bench


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def _fuse(recipe: Recipe, runtime: Runtime) -> None:
    launch(fuse_models, recipe, runtime=runtime)


def _extract(recipe: Recipe, runtime: Runtime) -> None:
    launch(extract_source, recipe, "teacher", runtime=runtime)


def _inspect(recipe: Recipe, runtime: Runtime) -> None:
    launch(inspect_recipe, recipe, runtime=runtime)


def _evaluate(recipe: Recipe, runtime: Runtime) -> None:
    assert recipe.evaluation is not None
    models = [named.model for named in (recipe.target, *recipe.sources)]
    assert all(isinstance(model, LocalModel) for model in models)
    first, *others = (Candidate.model_validate({"name": f"m{n}", "model": m}) for n, m in enumerate(models))
    launch(evaluate_model, first, recipe.evaluation.corpus, against=others, runtime=runtime)


@pytest.mark.parametrize(
    ("run", "until"),
    [
        (_extract, "extract"),
        (_evaluate, "evaluate"),
        (_inspect, "inspect_scores"),
        pytest.param(_fuse, "report", marks=pytest.mark.slow),
    ],
)
def test_what_a_run_made_hours_ago_is_no_garbage_while_it_goes_on(
    bench: Bench, run: Callable[[Recipe, Runtime], None], until: str
) -> None:
    runtime = Runtime(root=str(bench.root), device="cpu", max_workers=1)
    taken: set[str] = set()
    seen: set[str] = set()

    def collect(event: Event) -> None:
        seen.add(event.step)
        if event.state == "started" and event.step == until:
            found = collect_garbage.fn(runtime, min_age=0.0)  # as if all of it were older than that
            taken.update(item.path for item in found if item.kind == "artifact")

    with listening(collect):
        run(load_recipe(str(bench.recipe)), runtime)
    assert until in seen
    assert taken == set()
    assert len(runs(open_store(runtime))) == 1
    assert collect_garbage.fn(runtime, min_age=0.0) == [] or run is _inspect  # its sample's corpus served it alone
