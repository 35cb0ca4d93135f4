"""What a drill found, and how it is shown."""

from collections.abc import Iterable
from dataclasses import dataclass

PROMISED_RECOVERY_SECONDS = 120.0


@dataclass
class Outcome:
    """One line of the table.

    trials: how often it was tried. faults: injected ones. lost: committed work that was gone or done again.
    wrong: bytes that differ from what they must be, failures without the right words, debris that stayed.
    longest: seconds from a fault until its work went on, or until the failure was told. limit: what is promised for it.
    """

    name: str
    trials: int = 0
    faults: int = 0
    lost: int = 0
    wrong: int = 0
    longest: float = 0.0
    limit: float = PROMISED_RECOVERY_SECONDS
    remark: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the drill saw what is promised."""
        return not self.lost and not self.wrong and self.longest <= self.limit and self.trials > 0

    def recovered(self, seconds: float) -> None:
        """Notes a recovery."""
        self.longest = max(self.longest, seconds)

    def blame(self, problems: Iterable[str]) -> None:
        """Counts what is wrong and keeps the first in words."""
        for problem in problems:
            self.wrong += 1
            self.remark = self.remark or problem

    def line(self) -> str:
        """The line of the table."""
        figures = f"{self.trials:>6} {self.faults:>6} {self.lost:>5} {self.wrong:>5} {self.longest:>8.1f} s"
        return f"{self.name:44} {figures}  {'kept' if self.is_kept else 'BROKEN'}  {self.remark[:200]}".rstrip()


@dataclass(frozen=True)
class Skip:
    """A drill that this machine can't hold."""

    name: str
    reason: str

    def line(self) -> str:
        """The line of the table."""
        return f"{self.name:44} skipped: {self.reason}"


HEADER = f"{'drill':44} {'trials':>6} {'faults':>6} {'lost':>5} {'wrong':>5} {'longest':>10}"
