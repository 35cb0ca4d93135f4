"""`publish_model`: a model of the store goes out, with its card, recipe and lineage, unless something objects."""

import hashlib
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.fuse import FusionResult, fuse_models
from flows.recipe import load_recipe
from flows.recipe_files import RECIPES
from fusion_core.spec import Spec
from tasks.artifacts import ModelRef, Runtime
from tasks.library.lineage import Library, RunRecord, record_run
from tasks.publishing.destinations import Destination
from tasks.publishing.provenance import Provenance, read_provenance
from tasks.publishing.publication import SHARD_BYTES, assemble, check_publishable
from tasks.running.progress import Event, tell
from tasks.secrets import hiding_secrets
from tasks.step import planning
from tasks.storage.store import open_store


class Published(Spec):
    """What went where. `allowed`: the objections that somebody overrode."""

    model: ModelRef
    place: str
    files: int
    bytes: int
    allowed: tuple[str, ...] = ()


@flow(name="publish-model", flow_run_name="publish {what}")
@hiding_secrets()
def publish_model(
    what: str,
    to: Destination,
    allow: tuple[str, ...] = (),
    replace: bool = False,
    shard_bytes: Annotated[int, Field(gt=0)] = SHARD_BYTES,
    runtime: Runtime = Runtime(),
) -> Published:
    """Publishes a model: safetensors, tokenizer, generation config, chat template, card, recipe and lineage.

    Refused when its smoke gate failed or licences conflict. The same publication twice does nothing the second time.

    Args:
        what: A model of the store (train/3f2a...), or a recipe that has been run.
        to: A folder, a bucket, or a repository of the Hugging Face hub.
        allow: Objections that somebody who may decide overrides by their names, as the refusal gives them.
        replace: Whether another model that is there may be replaced.
        shard_bytes: Larger weight files are cut.
        runtime: Which store, and where its files are kept meanwhile.
    """
    store = open_store(runtime)
    library = Library.load(store)
    found = read_provenance(library, find_model(what, library, runtime))
    overridden = check_publishable(found, allow)
    store.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.cache, prefix="publish-") as folder:
        files = assemble(found, store, Path(folder), shard_bytes)
        place = to.put(files, f"{found.name}: {found.manifest.ref}", replace, _teller(found))
        size = sum(path.stat().st_size for path in files.values())
    _keep(library, found, place)
    names = tuple(dict.fromkeys(objection.name for objection in overridden))
    return Published(model=found.manifest.ref, place=place, files=len(files), bytes=size, allowed=names)


def find_model(text: str, library: Library, runtime: Runtime) -> ModelRef:
    """The model that a person means: one of the store, or what a recipe's run came to.

    Raises ValueError when there is none.
    """
    if not text.endswith((".yaml", ".yml")) and not (RECIPES / f"{text}.yaml").exists():
        ref = library.find(text)
        return ModelRef(step=ref.step, fingerprint=ref.fingerprint)
    recipe = load_recipe(text)
    with planning():
        planned: FusionResult = fuse_models.fn(recipe, runtime)
    if planned.model.address not in library.manifests:
        raise ValueError(
            f"{text}: expected the model that this recipe comes to in {library.store.root}, found that it was not "
            f"trained yet; llm-fuse run {text}"
        )
    return planned.model


def _teller(provenance: Provenance) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        tell(Event("publish", f"publish {provenance.name}", "work", done=done, total=total, unit="bytes"))

    return report


def _keep(library: Library, provenance: Provenance, place: str) -> None:
    """What was published stays in the store, with everything that it was made from."""
    ref = provenance.manifest.ref
    record = RunRecord(
        name=f"published to {place}",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=provenance.recipe or {},
        refs=[ref],
        pinned=True,
    )
    mark = hashlib.sha256(f"{ref.address} {place}".encode()).hexdigest()[:16]
    record_run(library.store, record, run_id=f"published-{mark}")
