"""Finished parts of an artifact to be, in the store: private to its fingerprint, complete or ignored.

    {step}/{fingerprint}/partial/{part}-{attempt}/...          a part's files
    {step}/{fingerprint}/partial/{part}-{attempt}/PART.json    written last: sizes and SHA-256

Whoever takes over from a killed attempt goes on after them. They go when the artifact is published; those of an
artifact that nobody goes on with are garbage after a week.
"""

import contextlib
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.artifacts import SCHEMA_VERSION, FileFact, StoreError
from tasks.storage.store import Store

PARTIAL, MARK = "partial", "PART.json"
KEPT_SECONDS = 7 * 86400.0


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    files: dict[str, FileFact]


@dataclass(frozen=True)
class Parts:
    """The finished parts of the artifact at an address."""

    store: Store
    address: str

    def save(self, part: str, write: Callable[[Path], None]) -> None:
        """Keeps what `write` leaves in the folder that it is given, under a name of letters and digits."""
        owner = f"{PARTIAL}/{part}-{uuid.uuid4().hex[:8]}"
        place = self.store.scratch(self.address, owner)
        try:
            write(place)
            files = self.store.upload(place, self.address, owner)
            self.store.create(f"{self.address}/{owner}/{MARK}", _Record(files=files).model_dump_json(indent=1).encode())
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to see
                self.store.discard(place, self.address, owner)
            raise
        if not self.store.is_local:
            shutil.rmtree(place, ignore_errors=True)

    def find(self, part: str) -> Path | None:
        """A local folder with the part, every file checked; None where no attempt has finished it."""
        for name in self.store.names(self._folder, f"{part}-"):
            data = self.store.read(f"{self._folder}/{name}/{MARK}")
            if data is None:
                continue
            with contextlib.suppress(ValidationError, StoreError):  # damaged: made again
                record = _Record.model_validate_json(data)
                if record.schema_version <= SCHEMA_VERSION:
                    return self.store.bring(self.address, record.files) / PARTIAL / name
        return None

    def remove(self) -> None:
        """Removes all of them."""
        self.store.delete(self._folder)

    @property
    def _folder(self) -> str:
        return f"{self.address}/{PARTIAL}"
