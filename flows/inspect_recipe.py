"""`inspect_recipe`: what a fusion could gain and what it takes, in minutes on a CPU, before it is run.

    sample --+--> inspect_pair(source, target) ------------+--> report_inspection
             +--> extract(model that fits) --> inspect_scores -+

Of models the tokenizers and configs are read; weights only where they are here already and small enough.
"""

from dataclasses import dataclass

from prefect import flow
from pydantic import Field

from flows.corpora import build_shards
from flows.execution import executing
from flows.forecast import row_bytes, text_bytes
from flows.keeping import Keeper
from flows.recipe import NamedModel, Recipe, RecipeFile, RecipeForm, ScratchModel
from flows.stages import extract_shards, obtain_model, trusting
from fusion_core.spec import Spec
from tasks.artifacts import InspectionRef, Runtime, ShardRef, TokenizerRef
from tasks.corpus import CorpusSpec, DocumentSource, HubDataset, Installed
from tasks.download import download_description
from tasks.engines import pick_device, tokens_per_batch
from tasks.inspection import inspect_pair, inspect_scores
from tasks.models.folders import HubModel, LocalModel
from tasks.models.hub import read_dataset_licence
from tasks.preflight.findings import PairFindings, read_findings
from tasks.preflight.needs import Plan, describe_needs, find_devices, reason_not_to_run
from tasks.report.inspection import report_inspection
from tasks.scratch import train_tokenizer
from tasks.secrets import hiding_secrets
from tasks.step import Future, planning
from tasks.storage.store import open_store

_INSTALLED_DOMAINS = 3


class Assumptions(Spec):
    """What an inspection may take, and what it reckons with."""

    forward: bool = Field(True, title="Run models", description="Those whose weights are here and small enough.")
    sample_bytes: int = Field(300_000, ge=1000, title="Sample", description="Bytes of the corpus that are tokenized.")
    forward_bytes: int = Field(40_000, ge=1000, title="Sample to run", description="Bytes that models are run over.")
    corpus_bytes: int | None = Field(None, gt=0, title="Corpus size", description="Bytes, where it can't be told.")
    tflops: float = Field(100.0, gt=0, title="Speed", description="TFLOP/s that a device sustains on these models.")
    price_per_hour: float | None = Field(None, ge=0, title="Price", description="Of one device for an hour.")


@flow(name="inspect-recipe", flow_run_name="inspect {recipe.name}")
@hiding_secrets()
def inspect_recipe(
    recipe: RecipeForm, assumptions: Assumptions = Assumptions(), runtime: Runtime = Runtime()
) -> InspectionRef:
    """What each source could give the target, a verdict on each, and what the run would take.

    Args:
        recipe: The recipe that the fusion would run by.
        assumptions: What the inspection may take, and what it reckons with.
        runtime: Where and how it is computed.
    """
    if isinstance(recipe, RecipeFile):
        recipe = recipe.load()
    runtime = trusting(runtime, (recipe.target, *recipe.sources))
    open_store(runtime).probe()
    keeper = Keeper(f"inspect {recipe.name}", recipe.model_dump(mode="json"), runtime)
    with executing(runtime):
        done = _inspect(recipe, assumptions, runtime, keeper)
    keeper.keep([done])
    return done


def _inspect(recipe: Recipe, assumptions: Assumptions, runtime: Runtime, keeper: Keeper) -> InspectionRef:
    sample = take_sample(recipe.corpus, assumptions.sample_bytes, "sample", runtime)
    futures = {named.name: _describe(named, runtime) for named in (recipe.target, *recipe.sources)}
    described = {name: future.result() for name, future in futures.items()}
    keeper.add([*sample, *described.values()])
    target = described[recipe.target.name]
    pairs = {
        source.name: inspect_pair.submit(
            described[source.name], target, sample, runtime=runtime, label=f"inspect {source.name}"
        )
        for source in recipe.sources
    }
    found = {name: future.result() for name, future in pairs.items()}
    keeper.add(found.values())
    run = _run_models(recipe, described, assumptions, runtime, keeper)
    needs, warnings = _reckon(recipe, found, assumptions, runtime)
    done: InspectionRef = report_inspection.submit(
        recipe.name, recipe.target.name, found, run.scores, run.skipped, _licences(recipe, described, runtime),
        needs, warnings, runtime=runtime, label="report",
    ).result()  # fmt: skip
    return done


def take_sample(spec: CorpusSpec, sample_bytes: int, label: str, runtime: Runtime) -> list[ShardRef]:
    """The first shard of each of the corpus's sources, all of them together about `sample_bytes` long."""
    size = max(sample_bytes // len(spec.documents), 16)
    shards = []
    for number, source in enumerate(spec.documents, 1):
        part = spec.model_copy(
            update={
                "documents": (_narrow(source, size),),
                "mixture": None,
                "decontamination": None,
                "shard_bytes": size,
                "sharding": "by_size",
                "max_documents": min(spec.max_documents or 1000, 1000),
                "short_documents": "drop",
            }
        )
        shards += build_shards(part, f"{label} {number}", runtime)[:1]
    return shards


def _narrow(source: DocumentSource, size: int) -> DocumentSource:
    """The same documents, where their order is by domain a few of each."""
    if not isinstance(source, Installed):
        return source
    per_domain = size // (len(source.domains) or _INSTALLED_DOMAINS)
    return source.model_copy(
        update={"max_bytes_per_domain": min(source.max_bytes_per_domain or per_domain, per_domain)}
    )


def _describe(named: NamedModel, runtime: Runtime) -> Future:
    """The model's small files; of one that is made here the tokenizer alone."""
    spec = named.model
    if not isinstance(spec, ScratchModel):
        return download_description.submit(spec, runtime=runtime, label=f"describe {named.name}")
    shards = build_shards(spec.corpus, f"corpus {named.name}", runtime)
    label = f"train tokenizer {named.name}"
    return train_tokenizer.submit(shards, spec.tokenizer, runtime=runtime, label=label)


# ---- models that are run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What was run over the sample, and why the rest wasn't."""

    scores: InspectionRef | None
    skipped: dict[str, str]


def _run_models(
    recipe: Recipe, described: dict[str, TokenizerRef], assumptions: Assumptions, runtime: Runtime, keeper: Keeper
) -> _Run:
    models = {named.name: named for named in (recipe.target, *recipe.sources)}
    if not assumptions.forward:
        return _Run(None, dict.fromkeys(models, "not asked for"))
    device = find_devices()[0]
    skipped = {}
    for name, named in models.items():
        weights = _weight_bytes(named, described[name], runtime)
        if reason := reason_not_to_run(weights, assumptions.forward_bytes, device):
            skipped[name] = reason
    chosen = {name: named for name, named in models.items() if name not in skipped}
    if not chosen:
        return _Run(None, skipped)
    sample = take_sample(recipe.corpus, assumptions.forward_bytes, "sample to run", runtime)
    futures: dict[str, list[Future]] = {
        name: extract_shards(recipe, name, obtain_model(named, runtime), sample, runtime)
        for name, named in chosen.items()
    }
    scored = {}
    for name, own in futures.items():
        try:
            scored[name] = [future.result() for future in own]
        except ValueError as error:  # what the run itself would stop at
            skipped[name] = str(error)
        else:
            keeper.add(scored[name])
    if not scored:
        return _Run(None, skipped)
    teachers = [recipe.target.name] * recipe.target_as_teacher + [source.name for source in recipe.sources]
    scores = inspect_scores.submit(
        list(scored), list(scored.values()), teachers, recipe.target.name, sample, runtime=runtime, label="scores"
    ).result()
    keeper.add([scores])
    return _Run(scores, skipped)


def _weight_bytes(named: NamedModel, description: TokenizerRef, runtime: Runtime) -> int:
    """Bytes of weights that are here: in a folder, or in the store since another run; 0 for none."""
    if isinstance(named.model, LocalModel):
        manifest = open_store(runtime).manifest(description)
        return 0 if manifest is None else int(manifest.facts["weight_bytes"])
    with planning() as planned:
        obtain_model(named, runtime)
    return planned[-1].cached_bytes or 0


# ---- what it takes ---------------------------------------------------------------------------------------------


def _reckon(
    recipe: Recipe, pairs: dict[str, InspectionRef], assumptions: Assumptions, runtime: Runtime
) -> tuple[dict[str, str], list[str]]:
    store = open_store(runtime)
    found = {name: read_findings(store, ref, PairFindings) for name, ref in pairs.items()}
    baselines = recipe.evaluation.baselines if recipe.evaluation else ()
    plan = Plan(
        corpus_bytes=assumptions.corpus_bytes or text_bytes(recipe.corpus) or None,
        row_bytes=row_bytes(recipe.extraction.mode),
        dtype=recipe.extraction.engine.dtype,
        batch_tokens=tokens_per_batch(runtime.batch_tokens, pick_device(runtime.device)),
        epochs=recipe.training.epochs,
        trainings=1 + len(baselines),
        flops=assumptions.tflops * 1e12,
        price_per_hour=assumptions.price_per_hour,
    )
    target = next(iter(found.values())).target
    return describe_needs(target, {name: pair.source for name, pair in found.items()}, plan, find_devices())


def _licences(recipe: Recipe, described: dict[str, TokenizerRef], runtime: Runtime) -> dict[str, dict[str, str | None]]:
    """What hub repositories and model cards state; folders without a card aren't asked."""
    store = open_store(runtime)
    models: dict[str, str | None] = {}
    for named in (recipe.target, *recipe.sources):
        manifest = store.manifest(described[named.name])
        licence = None if manifest is None else manifest.facts.get("licence")
        if licence is not None or isinstance(named.model, HubModel):
            models[named.name] = licence
    data = {
        source.id: read_dataset_licence(source.id, source.revision)
        for source in recipe.corpus.documents
        if isinstance(source, HubDataset)
    }
    return {"models": models, "data": data}
