"""The study: a base recipe, what is varied, and what it is compared with, read from YAML.

    name: evidence
    recipe: quickstart                  # a shipped recipe, or a file beside this one
    changes: [training.epochs=2]        # of every arm
    seeds: [0, 1, 2]                    # of the data order
    variants:
      - {name: k 10, question: Number of candidates, changes: [extraction.mode.k=10], seeds: 1}

Whatever it varies, a study also has its fixed arms (`fixed_variants`): without them a number says nothing.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from flows.recipe import NamedModel, Recipe, load_recipe
from flows.recipe_files import RecipeError, explain_errors, read_yaml
from fusion_core.merging import MergeStrategy, Sce
from fusion_core.spec import Name, Spec
from tasks.report.arms import CONTROLS
from tasks.secrets import Address

MAIN, RIVAL = "fused", "CLM only"
"""The recipe as it is, and the same training without a teacher."""
MERGED = "pairwise, then merged"
_TAUGHT, _OTHER_WAYS = "Fused and alone", "Other ways to use the sources"

Teacher = Literal["sources", "none", "target", "shuffled", "unigram", "uniform"]


class Variant(Spec):
    """One way to train the target: the study's recipe with changes."""

    name: Name = Field(title="Name", min_length=1, max_length=60, description="In the table.")
    question: Name = Field(
        "Variants", title="Question", min_length=1, description="What it answers; a heading of the table."
    )
    changes: tuple[str, ...] = Field((), title="Changes", description="Each as field=value: fusion.kind=avg_ce.")
    sources: tuple[str, ...] = Field((), title="Sources", description="Only these, by name; empty: all.")
    teacher: Teacher = Field(
        "sources",
        title="Teacher",
        description=(
            "sources: the fused one; none: language modelling alone; target: its own distributions; in the fused "
            "one's rows shuffled: its rows in another order, unigram: token frequencies, uniform: label smoothing."
        ),
    )
    seeds: int | None = Field(None, ge=1, title="Seeds", description="Only the study's first so many; empty: all.")


class Merging(Spec):
    """A model merged from the weights of others, where architectures and tokenizers agree."""

    name: Name = Field(title="Name", min_length=1, max_length=60, description="In the table.")
    question: Name = Field(_OTHER_WAYS, title="Question", min_length=1, description="A heading of the table.")
    models: tuple[str, ...] = Field(title="Models", min_length=1, description="Arms, sources or the target, by name.")
    strategy: MergeStrategy = Field(Sce(), title="Strategy", description="How weights become one.")


@dataclass(frozen=True)
class Arm:
    """A variant with its whole recipe and the seeds it is trained with."""

    variant: Variant
    recipe: Recipe
    seeds: tuple[int, ...]


class Study(Spec):
    """A base recipe, its variants and mergings, and the seeds."""

    name: Name = Field("study", title="Name", min_length=1, max_length=80, description="Of the run and its report.")
    description: str = Field("", title="Description", description="For people; one sentence.")
    recipe: Address = Field("quickstart", title="Recipe", min_length=1, description="A shipped one, a file or a URL.")
    changes: tuple[str, ...] = Field((), title="Changes", description="Of every arm, each as field=value.")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, title="Seeds", description="Of the data order, one training each."
    )
    fixed: bool = Field(
        True,
        title="Fixed arms",
        description="Controls, single sources, the original, a merging; see the documentation.",
    )
    variants: tuple[Variant, ...] = Field((), title="Variants", description="One of a fixed arm's name replaces it.")
    mergings: tuple[Merging, ...] = Field((), title="Mergings", description="Likewise.")
    only: tuple[str, ...] = Field(
        (), title="Only these", description="Arms by name, with what they need; what all are compared with comes along."
    )

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"expected seeds that differ, found {', '.join(map(str, self.seeds))}")
        return self

    @property
    def base(self) -> Recipe:
        """The recipe that all arms vary. Raises `RecipeError`, also for one that doesn't evaluate."""
        recipe = load_recipe(self.recipe, self.changes)
        if recipe.evaluation is None:
            raise RecipeError(f"study {self.name}: expected a recipe with `evaluation`, found none in {self.recipe}")
        return recipe

    def plan_arms(self) -> tuple[list[Arm], list[Merging]]:
        """The trainings and then the mergings of them that are wanted, each arm with its checked recipe.

        Raises `RecipeError` for a name that is taken or unknown, and for changes that make no recipe.
        """
        base = self.base
        fixed, merged = fixed_variants(base.sources) if self.fixed else fixed_variants(())
        variants = _replace(fixed, self.variants)
        mergings = _replace(merged, self.mergings)
        names = [arm.name for arm in (*variants, *mergings)]
        models = [base.target.name, *(source.name for source in base.sources)]
        self._check_names(names, models, mergings)
        wanted = _needed(self.only or names, mergings)
        arms = [self._arm(variant) for variant in variants if variant.name in wanted]
        return arms, [merging for merging in mergings if merging.name in wanted]

    def narrow(self, only: Sequence[str] = (), seeds: int | None = None) -> Self:
        """A part of the study: of these arms, the first seeds. Raises `RecipeError` for an unknown arm."""
        part = self.model_copy(update={"only": tuple(only) or self.only, "seeds": self.seeds[:seeds]})
        part.plan_arms()
        return part

    def _arm(self, variant: Variant) -> Arm:
        try:
            recipe = load_recipe(self.recipe, (*self.changes, *variant.changes))
        except RecipeError as error:
            raise RecipeError(f"variant {variant.name}: {error}") from None
        if variant.sources:
            known = {source.name: source for source in recipe.sources}
            if unknown := [name for name in variant.sources if name not in known]:
                raise RecipeError(
                    f"variant {variant.name}.sources: expected some of {', '.join(known)}, found {unknown[0]!r}"
                )
            recipe = recipe.model_copy(update={"sources": tuple(known[name] for name in variant.sources)})
        return Arm(variant, recipe, self.seeds[: variant.seeds])

    def _check_names(self, names: list[str], models: list[str], mergings: Sequence[Merging]) -> None:
        every = [*names, *models]
        if twice := [name for name in dict.fromkeys(every) if every.count(name) > 1]:
            raise RecipeError(f"study {self.name}: names of arms and models must differ, found {twice[0]!r} twice")
        asked = [*self.only, *(model for merging in mergings for model in merging.models)]
        if unknown := [name for name in asked if name not in every]:
            raise RecipeError(f"study {self.name}: expected one of {', '.join(every)}, found {unknown[0]!r}")


def fixed_variants(sources: Sequence[NamedModel]) -> tuple[list[Variant], list[Merging]]:
    """The arms every study has; without sources to name, only the recipe itself and its training without a teacher."""
    taught = [Variant(name=MAIN, question=_TAUGHT), Variant(name=RIVAL, question=_TAUGHT, teacher="none")]
    if not sources:
        return taught, []
    controls = [
        Variant(name="label smoothing", question=CONTROLS, teacher="uniform", changes=("training.lm_weight=0.9",)),
        Variant(name="own teacher", question=CONTROLS, teacher="target"),
        Variant(name="shuffled teacher", question=CONTROLS, teacher="shuffled"),
        Variant(name="unigram teacher", question=CONTROLS, teacher="unigram"),
    ]
    original = Variant(name="the original", question=_OTHER_WAYS, changes=ORIGINAL, seeds=1)
    if len(sources) == 1:
        return [*taught, *controls, original], []
    alone = [
        Variant(name=f"from {source.name} alone", question=_OTHER_WAYS, sources=(source.name,), seeds=1)
        for source in sources
    ]
    merged = Merging(name=MERGED, models=tuple(variant.name for variant in alone))
    return [*taught, *controls, *alone, original], [merged]


ORIGINAL = (
    "reference=true",
    "extraction.mode={kind: top_k, k: 10}",
    "vocab_mapping={kind: min_edit}",
    "alignment={kind: min_edit_dtw}",
    "fusion={kind: min_ce}",
    "training.divergence={kind: soft_cross_entropy}",
    "training.lm_weight=0.9",
)
"""The published code's arithmetic and weight."""


def load_study(source: str, overrides: Sequence[str] = ()) -> Study:
    """The study from a YAML file: a path, a URL, or the name of a shipped one. `overrides` change every arm's recipe.

    Raises `RecipeError` with one line per wrong field, those of its variants' recipes included.
    """
    data = read_yaml(source)
    recipe = data.get("recipe")
    if isinstance(recipe, str) and recipe.endswith((".yaml", ".yml")) and "://" not in recipe:
        data["recipe"] = posixpath.join(posixpath.dirname(source), recipe)  # an absolute path stays as it is
    try:
        study = TypeAdapter(Study).validate_python(data)
    except ValidationError as error:
        raise RecipeError(f"{source}: {explain_errors(error, data)}") from None
    study = study.model_copy(update={"changes": (*study.changes, *overrides)})
    study.plan_arms()
    return study


def is_study(source: str) -> bool:
    """Whether the YAML file is a study and no recipe: it names a recipe instead of a target."""
    data = read_yaml(source)
    return "recipe" in data and "target" not in data


def _replace(fixed: Sequence[Any], given: Sequence[Any]) -> list[Any]:  # Any: variants, or mergings
    """The fixed ones, each replaced by a given one of its name, and then the other given ones."""
    by_name = {item.name: item for item in given}
    return [by_name.pop(item.name, item) for item in fixed] + [i for i in given if i.name in by_name]


def _needed(names: Sequence[str], mergings: Sequence[Merging]) -> set[str]:
    """The names, what their mergings are made of, and what everything is compared with."""
    parts = {merging.name: merging.models for merging in mergings}
    needed, rest = {RIVAL}, list(names)
    while rest:
        name = rest.pop()
        if name not in needed or name == RIVAL:
            needed.add(name)
            rest += parts.get(name, ())
    return needed
