"""What a model earned on tasks, as it is stored."""

import json
import math
from pathlib import Path

from fusion_core.metrics import Interval, share_interval
from fusion_core.spec import Spec

SCORES, QUESTIONS = "scores.json", "questions.json"
_HEADLINES = ("acc_norm", "exact_match", "f1", "acc", "em", "pass@1")
_NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard errors


class TaskScore(Spec):
    """One metric of one task. stderr: None where the harness knows no standard error for the metric."""

    task: str
    metric: str
    filter: str = ""
    value: float
    stderr: float | None
    higher_is_better: bool = True
    questions: int

    @property
    def interval(self) -> Interval:
        """The value with its 95 % interval: Wilson's where every answer is right or wrong, else the normal one.

        Without a standard error the interval is the value alone.
        """
        spread = self.value * (1 - self.value) / max(self.questions - 1, 1)
        if self.stderr is not None and 0 <= self.value <= 1 and math.isclose(self.stderr**2, spread, rel_tol=1e-6):
            return share_interval(self.value, self.questions)
        half = _NORMAL_95 * (self.stderr or 0.0)
        return Interval(self.value, self.value - half, self.value + half)


class TaskScores(Spec):
    """All metrics of one entry: its own first, then those of the tasks in it."""

    name: str
    scores: tuple[TaskScore, ...]

    @property
    def headline(self) -> TaskScore:
        """The one metric for a table: of the entry itself, length-normalised or exact-match before others."""
        own = [score for score in self.scores if score.task == self.name] or list(self.scores)
        ranks = {name: rank for rank, name in enumerate(_HEADLINES)}
        return min(own, key=lambda score: ranks.get(score.metric, len(ranks)))


def write_scores_file(folder: Path, scores: TaskScores, questions: dict[str, dict[str, list[object]]]) -> None:
    """Writes the scores, and per task what every question earned: columns `question` (a hash) and one per metric."""
    (folder / SCORES).write_text(scores.model_dump_json(indent=1), encoding="utf-8")
    (folder / QUESTIONS).write_text(json.dumps(questions), encoding="utf-8")


def read_scores_file(folder: Path) -> TaskScores:
    """The scores that lie in an artifact's folder."""
    return TaskScores.model_validate_json((folder / SCORES).read_bytes())
