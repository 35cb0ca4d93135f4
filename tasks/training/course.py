"""What a training has gone through so far; a part of every checkpoint, so that a resumed one tells the same."""

import hashlib
from pathlib import Path

from pydantic import BaseModel

COURSE = "course.json"


class Course(BaseModel):
    """Losses, and a digest of the batches: the proof that two trainings learned from the same texts in the same order.

    A step enters the digest by the sum of its sequences' marks, so that neither the number of processes nor the
    size of passes shows.
    """

    steps: int = 0
    digest: str = ""
    loss_sum: float = 0.0
    window_steps: int = 0
    window_sum: float = 0.0
    seconds: float = 0.0
    seconds_waited: float = 0.0
    tokens: int = 0

    def add_step(self, loss: float, marks: int, tokens: int) -> None:
        """Takes in one step: its loss in nats per label, the sum of its sequences' marks, its tokens."""
        self.steps += 1
        self.digest = hashlib.sha256(f"{self.digest} {marks}".encode()).hexdigest()
        self.loss_sum += loss
        self.window_sum += loss
        self.window_steps += 1
        self.tokens += tokens

    def close_window(self) -> float:
        """The mean loss of the steps since the last call."""
        mean = self.window_sum / max(self.window_steps, 1)
        self.window_sum, self.window_steps = 0.0, 0
        return mean

    @property
    def tokens_per_second(self) -> float:
        """Of the time spent in steps, checkpoints included."""
        return self.tokens / max(self.seconds, 1e-9)

    def write(self, folder: Path) -> None:
        """Writes `course.json`."""
        (folder / COURSE).write_text(self.model_dump_json())

    @classmethod
    def read(cls, folder: Path | None) -> "Course":
        """The course of a checkpoint, or of a training that begins."""
        return cls() if folder is None else cls.model_validate_json((folder / COURSE).read_bytes())
