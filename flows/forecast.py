"""About how many bytes a run will write, told before anything is computed."""

from pathlib import Path

import fsspec

from flows.plan import Plan
from flows.recipe import Recipe, ScratchModel
from fusion_core.distributions import ExtractionMode, ReferenceTopK, Sampled, TopK, TopP
from tasks.artifacts import Runtime
from tasks.corpus import CorpusSpec, Files, Installed
from tasks.download import pin_model, select_files
from tasks.models.folders import HubModel, LocalModel
from tasks.models.hub import list_files

BYTES_PER_TOKEN = 3.0
"""Of text; real tokenizers reach 3 to 5 on English, so that the forecast errs to the high side."""
_INSTALLED_DOMAINS = 3


def expected_bytes(plan: Plan, recipe: Recipe, runtime: Runtime) -> int:
    """Bytes that computing the plan's missing artifacts writes, at least: what can't be told beforehand counts as 0.

    Where a step has artifacts in the store, its missing ones are taken to be as large on average.
    """
    estimates = _estimate(recipe, runtime)
    total = 0.0
    for row in plan.steps:
        whole = estimates.pop(row.step, 0)
        if row.cached:
            total += row.cached_bytes / row.cached * row.to_compute
        elif row.to_compute:
            total += whole
    if plan.unbuilt:  # the sharded steps aren't in the plan yet
        total += sum(estimates.values())
    return round(total)


def _estimate(recipe: Recipe, runtime: Runtime) -> dict[str, int]:
    """Bytes of all artifacts of each step, as if none was there."""
    text = text_bytes(recipe.corpus)
    sources = len(recipe.sources)
    distributions = text / BYTES_PER_TOKEN * row_bytes(recipe.extraction.mode)
    baselines = recipe.evaluation.baselines if recipe.evaluation else ()
    own_teachers = sum(baseline.teacher == "target" for baseline in baselines)
    sizes = [_model_bytes(named.model, runtime) for named in (recipe.target, *recipe.sources)]
    scratch = sum(
        size for size, named in zip(sizes, (recipe.target, *recipe.sources), strict=True) if _is_scratch(named.model)
    )
    parts = {
        "build_corpus": text,
        "extract": (1 + sources) * distributions,
        "align": sources * distributions,
        "fuse": (1 + own_teachers) * distributions,
        "train": (1 + len(baselines)) * sizes[0] + scratch,
        "init_model": scratch,
        "download": sum(sizes) - scratch,
    }
    return {step: round(size) for step, size in parts.items()}


def row_bytes(mode: ExtractionMode) -> int:
    """Bytes of one token's distribution: ids of 3 bytes and fp16 per candidate, and what a row has once."""
    match mode:
        case TopK(k=kept) | TopP(k_max=kept) | Sampled(n=kept):
            return 9 + 5 * kept
        case ReferenceTopK(k=kept):  # in float64
            return 17 + 11 * kept


def text_bytes(spec: CorpusSpec) -> int:
    """Bytes of the documents, as far as files and limits tell."""
    total = 0
    for source in spec.documents:
        if isinstance(source, Installed):
            total += (source.max_bytes_per_domain or 0) * (len(source.domains) or _INSTALLED_DOMAINS)
        elif isinstance(source, Files):
            total += sum(_size(path) for path in source.paths)
    return total


def _size(path: str) -> int:
    fs, plain = fsspec.core.url_to_fs(path)
    return sum(int(fs.size(match) or 0) for match in (fs.glob(plain) if fsspec.core.has_magic(plain) else [plain]))


def _is_scratch(model: HubModel | LocalModel | ScratchModel) -> bool:
    return isinstance(model, ScratchModel)


def _model_bytes(model: HubModel | LocalModel | ScratchModel, runtime: Runtime) -> int:
    """Bytes of a model's files; 0 where the hub doesn't tell."""
    match model:
        case ScratchModel(architecture=sizes):
            parameters = model.tokenizer.vocab_size * sizes.hidden_size + 12 * sizes.layers * sizes.hidden_size**2
            return 4 * parameters
        case LocalModel():
            return sum(path.stat().st_size for path in Path(model.path).expanduser().glob("*.safetensors"))
        case HubModel():
            try:
                listing = list_files(model.id, str(pin_model(model, runtime=runtime)["commit"]))
            except (ConnectionError, ValueError):  # out of reach or offline: what a forecast can't know counts as 0
                return 0
            return sum(listing.files[name].bytes for name in select_files(listing.files, model.id))
