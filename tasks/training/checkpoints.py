"""A training's checkpoints in the store: private to the fingerprint of the model to be, complete or ignored.

    {step}/{fingerprint}/checkpoints/{training step}-{attempt}/...               the Trainer's files
    {step}/{fingerprint}/checkpoints/{training step}-{attempt}/CHECKPOINT.json   written last: sizes and SHA-256

Another recipe has another fingerprint, so its checkpoints can't be found. They go when the model is published.
"""

import contextlib
import hashlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.artifacts import SCHEMA_VERSION, FileFact, StoreError
from tasks.runtime import TrainingRuntime
from tasks.storage.store import Store

CHECKPOINTS, MARK = "checkpoints", "CHECKPOINT.json"


def layout_of(how: TrainingRuntime) -> str:
    """The name of how processes share a training's state: `plain` where each of them could hold it all."""
    if how.accelerate_config is None:
        return "plain"
    config = hashlib.sha256(Path(how.accelerate_config).read_bytes()).hexdigest()[:12]
    return f"{config}-{how.processes}"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    step: int
    layout: str
    files: dict[str, FileFact]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one model to be.

    layout: how processes share the state; what one layout wrote another can't read.
    """

    store: Store
    address: str
    layout: str = "plain"

    def save(self, folder: Path, step: int) -> None:
        """Moves a folder's files to the store; earlier checkpoints go once it is complete."""
        name = f"{step:010d}-{uuid.uuid4().hex[:8]}"
        owner = f"{CHECKPOINTS}/{name}"
        place = self.store.scratch(self.address, owner)
        for path in sorted(folder.iterdir()):
            shutil.move(path, place / path.name)
        files = self.store.upload(place, self.address, owner)
        record = _Record(step=step, layout=self.layout, files=files)
        self.store.create(f"{self.address}/{owner}/{MARK}", record.model_dump_json(indent=1).encode())
        if not self.store.is_local:
            shutil.rmtree(place, ignore_errors=True)
        for earlier in self.store.names(self._folder):
            if earlier < name:
                with contextlib.suppress(OSError):  # it may go later as well
                    self.store.delete(f"{self._folder}/{earlier}")

    def newest(self) -> Path | None:
        """A local folder with the newest complete checkpoint of this layout, every file checked; None without one."""
        for name in reversed(self.store.names(self._folder)):
            data = self.store.read(f"{self._folder}/{name}/{MARK}")
            if data is None:
                continue
            try:
                record = _Record.model_validate_json(data)
                if record.layout == self.layout and record.schema_version <= SCHEMA_VERSION:
                    return self.store.bring(self.address, record.files) / CHECKPOINTS / name
            except (ValidationError, StoreError):  # damaged: the one before will do
                continue
        return None

    def remove(self) -> None:
        """Removes all of them."""
        self.store.delete(self._folder)

    @property
    def _folder(self) -> str:
        return f"{self.address}/{CHECKPOINTS}"
