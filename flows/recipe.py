"""The recipe: a whole fusion run as one closed model, read from YAML, shown as a form in the Prefect UI."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from flows.comparison import Comparison
from flows.recipe_files import RecipeError, explain_errors, read_yaml, set_field
from flows.reference import choose_reference
from fusion_core.alignment import AlignmentStrategy, ByteBoundary
from fusion_core.distributions import Sampled
from fusion_core.divergences import JSD, ReverseKL
from fusion_core.fusion import FusionStrategy, MinCE
from fusion_core.reference.fusion import ReferenceAvgCE, ReferenceMinCE
from fusion_core.spec import Name, Spec
from fusion_core.vocab_mapping import BytePiece, VocabMapping
from tasks.corpus import CorpusSpec
from tasks.extract import ExtractionSpec
from tasks.models.folders import HubModel, LocalModel
from tasks.scratch import ArchitectureSpec, TokenizerSpec
from tasks.secrets import Address
from tasks.training.spec import TrainingSpec


class ScratchModel(Spec):
    """A model trained from nothing on a corpus of its own: small experiments, the quickstart."""

    kind: Literal["scratch"] = "scratch"
    architecture: ArchitectureSpec = Field(title="Architecture", description="Its kind and size.")
    tokenizer: TokenizerSpec = Field(title="Tokenizer", description="Trained on the corpus below.")
    corpus: CorpusSpec = Field(title="Corpus", description="The text that it learns from.")
    training: TrainingSpec = Field(title="Training", description="Plain language modelling; lm_weight must be 1.")

    @model_validator(mode="after")
    def _learns_from_text_alone(self) -> "ScratchModel":
        if self.training.lm_weight != 1:
            raise ValueError(
                f"a model from scratch has no teacher: expected training.lm_weight 1, found {self.training.lm_weight}"
            )
        return self


ModelSource = Annotated[HubModel | LocalModel | ScratchModel, Field(discriminator="kind")]


class NamedModel(Spec):
    """A model and the name it has in tables, labels and reports."""

    name: Name = Field(title="Name", min_length=1, max_length=60, description="In tables, labels and the report.")
    model: ModelSource = Field(title="Model", description="From the hub, from a folder, or trained here from nothing.")


class Recipe(Spec):
    """Everything that decides what a fusion run computes."""

    name: Name = Field("fusion", title="Name", min_length=1, max_length=80, description="Of the run and its report.")
    reference: bool = Field(
        False,
        strict=True,
        title="As in the original",
        description="The arithmetic of the published FuseLLM code, for comparison: fixes what `flows.reference` says.",
    )
    description: str = Field("", title="Description", description="For people; one sentence.")
    target: NamedModel = Field(title="Target", description="The model that learns.")
    sources: tuple[NamedModel, ...] = Field(
        title="Sources", description="The models it learns from, in any number.", min_length=1
    )
    corpus: CorpusSpec = Field(title="Corpus", description="The text that all of them read.")
    extraction: ExtractionSpec = Field(
        ExtractionSpec(), title="Extraction", description="What is kept of each model's distributions."
    )
    vocab_mapping: VocabMapping = Field(
        BytePiece(),
        title="Vocabulary mapping",
        description="Which of the target's tokens stands for each of a source's.",
    )
    alignment: AlignmentStrategy = Field(
        ByteBoundary(), title="Alignment", description="Which positions of two tokenizations belong together."
    )
    fusion: FusionStrategy = Field(MinCE(), title="Fusion", description="How several teachers become one.")
    target_as_teacher: bool = Field(
        False, title="Target as a teacher", description="Its own distributions are one of the candidates."
    )
    training: TrainingSpec = Field(TrainingSpec(), title="Training", description="Objective and optimizer.")
    evaluation: Comparison | None = Field(None, title="Evaluation", description="Empty: train only.")
    min_shards: float = Field(1.0, gt=0, le=1, title="Shards that must succeed", description="Share of all shards.")

    @model_validator(mode="before")
    @classmethod
    def _follow_the_original(cls, data: Any) -> Any:  # Any: whatever YAML holds
        return choose_reference(data) if isinstance(data, Mapping) and data.get("reference") is True else data

    @model_validator(mode="after")
    def _reference_choices_fit(self) -> "Recipe":
        if not isinstance(self.fusion, ReferenceMinCE | ReferenceAvgCE):
            return self
        if not getattr(self.alignment, "reference", False):
            raise ValueError(
                f"fusion {self.fusion.kind} compares whole documents, expected alignment.reference true, "
                f"found {self.alignment.kind} without; set it, or reference: true for the whole recipe"
            )
        if self.fusion.base_teaches != self.target_as_teacher:
            raise ValueError(
                f"expected fusion.base_teaches to be target_as_teacher, found {self.fusion.base_teaches} and "
                f"{self.target_as_teacher}; leave it out with reference: true"
            )
        training = self.training
        if self.fusion.trust == "reward" and (training.lm_weight, training.batch_sequences) != (0, 1):
            raise ValueError(
                "fusion.trust reward weighs each sequence by its own reward, expected training.lm_weight 0 and "
                f"batch_sequences 1, found {training.lm_weight:g} and {training.batch_sequences}; set them"
            )
        return self

    @model_validator(mode="after")
    def _choices_fit(self) -> "Recipe":
        mode, divergence = self.extraction.mode, self.training.divergence
        if isinstance(mode, Sampled) and isinstance(divergence, ReverseKL | JSD):
            raise ValueError(
                f"training.divergence {divergence.kind} needs the mass outside the kept tokens, which sampled "
                "extraction does not have; take forward_kl or soft_cross_entropy, or extract top_k"
            )
        looks_around = getattr(self.alignment, "cover", 0) or getattr(self.alignment, "lookahead", 0)
        if mode.temperature != 1 and looks_around:
            raise ValueError(
                "alignment with cover or lookahead multiplies probabilities at temperature 1, "
                f"found {mode.temperature} in extraction.mode.temperature; set it to 1, or cover and lookahead to 0"
            )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> "Recipe":
        names = ["fused", *(model.name for model in (self.target, *self.sources))]
        if self.evaluation is not None:
            names += [baseline.name for baseline in self.evaluation.baselines]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"names of target, sources, baselines and `fused` must differ, found {', '.join(sorted(twice))} twice"
            )
        return self


class RecipeFile(Spec):
    """A recipe that is shipped or lies in a file, with changes."""

    source: Address = Field(
        "quickstart",
        title="Recipe",
        min_length=1,
        description="Name of a shipped recipe, or a YAML file that the worker can read: a path or URL (s3://...), "
        "whose password, if any, the worker has in its environment.",
    )
    changes: tuple[str, ...] = Field(
        (), title="Changes", description="Each as field=value: training.epochs=2, fusion.kind=avg_ce."
    )

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return PurePosixPath(self.source).stem

    def load(self) -> Recipe:
        """The recipe. Raises `RecipeError`."""
        return load_recipe(self.source, self.changes)


def _form_of(value: object) -> str:
    """Which of the two a value is meant to be, so that what is wrong with it is told of that one alone."""
    is_file = "source" in value if isinstance(value, dict) else isinstance(value, RecipeFile)
    return "file" if is_file else "recipe"


RecipeForm = Annotated[
    Annotated[RecipeFile, Tag("file")] | Annotated[Recipe, Tag("recipe")], Discriminator(_form_of)
]  # fmt: skip
"""A recipe as a flow's parameter: two tabs in Prefect's form, a file's name first."""


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe from a YAML file (path, fsspec URL, or the name of a shipped one), with `key.path=value` overrides.

    Values of overrides are YAML. Setting a `kind` to another one drops the fields of the old kind.
    Raises `RecipeError` with one line per wrong field.
    """
    data = read_yaml(source)
    if "recipe" in data and "target" not in data:
        raise RecipeError(f"{source}: expected a recipe, found a study of one; llm-fuse compare {source}")
    for override in overrides:
        set_field(data, override)
    try:
        return TypeAdapter(Recipe).validate_python(data)
    except ValidationError as error:
        raise RecipeError(f"{source}: {explain_errors(error, data)}") from None


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
