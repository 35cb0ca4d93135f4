"""Which runs are still kept: by name, by age, by number. What none of them reaches is garbage."""

import fnmatch
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import Field

from fusion_core.spec import Spec
from tasks.library.lineage import Library, RunRecord

UNFINISHED_DAYS = 7.0
"""A run that names what isn't made yet may still be going on: it stays at least so long."""


class Retention(Spec):
    """How long runs are kept. One is kept when any of the rules keeps it; without `days` and `latest` all are."""

    days: float | None = Field(None, ge=0, title="Days", description="Older runs are no longer kept; empty: no limit.")
    latest: int | None = Field(
        None, ge=0, title="Latest", description="So many finished runs of each name stay, whatever their age."
    )
    names: tuple[str, ...] = Field((), title="Names", description="These stay; * stands for anything: paper-*.")
    forget: tuple[str, ...] = Field(
        (), title="Forget", description="These go, even what was published or pulled; names or ids, * for anything."
    )

    def expired(self, records: Mapping[str, RunRecord], library: Library, now: float) -> dict[str, RunRecord]:
        """The runs that are no longer kept, by id.

        What was published or pulled goes by `forget` alone. A run is unfinished while the store lacks what it names.

        Args:
            records: all kept runs, oldest first.
            now: POSIX seconds.
        """
        gone = {}
        newer: dict[str, int] = {}
        for run_id, record in reversed(list(records.items())):
            unfinished = any(ref.address not in library.manifests for ref in record.refs)
            rank = newer.get(record.name, 0)
            newer[record.name] = rank + (not unfinished)
            if not _matches(run_id, record, self.names) and self._goes(run_id, record, rank, unfinished, now):
                gone[run_id] = record
        return {run_id: gone[run_id] for run_id in records if run_id in gone}

    def _goes(self, run_id: str, record: RunRecord, rank: int, unfinished: bool, now: float) -> bool:
        if _matches(run_id, record, self.forget):
            return True
        if record.pinned or (self.days is None and self.latest is None):
            return False
        age = age_of(record, now) / 86400
        if unfinished:
            return age > max(self.days or 0.0, UNFINISHED_DAYS)
        is_old = self.days is None or age > self.days
        return is_old and (self.latest is None or rank >= self.latest)


def age_of(record: RunRecord, now: float) -> float:
    """Seconds since the run started."""
    started = datetime.fromisoformat(record.started_at)
    return now - (started if started.tzinfo else started.replace(tzinfo=UTC)).timestamp()


def _matches(run_id: str, record: RunRecord, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(word, pattern) for word in (run_id, record.name) for pattern in patterns)
