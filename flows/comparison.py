"""What a recipe's models are measured on and compared with."""

from typing import Literal

from pydantic import Field, field_validator

from fusion_core.spec import Name, Spec
from tasks.corpus import CorpusSpec
from tasks.evaluate import EvaluationSpec
from tasks.evaluation.benchmarks import TaskChoice, expand_suites
from tasks.evaluation.gate_rules import GateSpec
from tasks.probe import ProbeSpec
from tasks.training.spec import TrainingSpec


class Baseline(Spec):
    """A target trained another way, to compare with: on the same text, in the same order."""

    name: Name = Field(title="Name", min_length=1, max_length=60, description="In the table.")
    teacher: Literal["none", "target"] = Field(
        "none", title="Teacher", description="none: language modelling alone; target: its own distributions."
    )
    training: TrainingSpec | None = Field(None, title="Training", description="Empty: as the fused target's.")


class Comparison(Spec):
    """What all models are measured on, and what they are compared with."""

    corpus: CorpusSpec = Field(title="Held-out text", description="What no model has seen.")
    spec: EvaluationSpec = Field(EvaluationSpec(), title="Reading", description="How models read it.")
    baselines: tuple[Baseline, ...] = Field(
        (Baseline(name="CLM only"),),
        title="Baselines",
        description="The target trained without the sources, to compare with.",
    )
    sources: bool = Field(
        True, title="Measure the sources too", description="What the teachers themselves pay for the text."
    )
    tasks: tuple[TaskChoice, ...] = Field(
        (), title="Tasks", description="Of lm-evaluation-harness, of one's own, or code problems; asked of every model."
    )
    gate: GateSpec | None = Field(
        GateSpec(), title="Smoke gate", description="How much worse than the target may be; empty: not judged."
    )
    probe: ProbeSpec = Field(ProbeSpec(), title="Probe", description="What the gate has models write.")

    @field_validator("tasks")
    @classmethod
    def _names_of_tasks_differ(cls, tasks: tuple[TaskChoice, ...]) -> tuple[TaskChoice, ...]:
        expand_suites(tasks)
        return tasks
