"""The sequences of a training and their teachers, on disk until a step asks for them."""

import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.artifacts import FusedRef, ModelRef, ShardRef
from tasks.corpora.documents import read_documents
from tasks.engines import Problem, check_window
from tasks.engines.encoding import Encoder
from tasks.engines.quarantine import check_some_left, encode_readable
from tasks.formats.shards import FusedRows
from tasks.storage.store import Store
from tasks.training.batches import Example

_LEFT_OUT = "left_out.json"
_OPEN_SHARDS = 4096  # memory maps: no file descriptors, and nothing read until it is asked for


def write_sequences(store: Store, model: ModelRef, shards: Sequence[ShardRef], folder: Path) -> None:
    """Encodes the corpus, one shard after the other, into `folder`: tokens, which to learn, and documents' names.

    Documents that the model can't read are left out, as extraction does. Raises `ValueError` when it can read none, or
    when a piece is longer than the model's window.
    """
    encoder = Encoder.load(store, model)
    left_out: dict[str, Problem] = {}
    ids: set[str] = set()
    for number, shard in enumerate(shards):
        documents = read_documents(store, shard)
        encoder.check(documents)
        read, problems = encode_readable(encoder, documents, None)
        left_out |= {documents[number].id: problem for number, problem in problems.items()}
        ids |= {document.id for document in documents}
        check_window(encoder.window, read.tokens, [d.num_bytes for d in documents])
        columns = {"ids": read.tokens.ids.to(torch.int32), "doc_offsets": read.tokens.doc_offsets}
        columns["is_learned"] = read.is_learned
        save_file(columns, _tokens_file(folder, number))
        _names_file(folder, number).write_text(json.dumps([d.id for d in documents]))
    check_some_left(encoder.name, left_out, len(ids))
    (folder / "vocabulary.json").write_text(json.dumps(encoder.vocabulary.size))
    (folder / _LEFT_OUT).write_text(json.dumps(list(left_out)))


def _tokens_file(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.safetensors"


def _names_file(folder: Path, number: int) -> Path:
    return folder / f"documents-{number:05d}.json"


class Examples(torch.utils.data.Dataset[Example]):
    """Every sequence of at least two tokens, with its teacher's rows. Only what is asked for is read, by memory map.

    left_out: ids of the documents that the model can't read. Of the whole corpus, 20 bytes per sequence are in memory.
    """

    def __init__(self, store: Store, folder: Path, shards: Sequence[ShardRef], teachers: Sequence[FusedRef]) -> None:
        """folder: as `write_sequences` left it. Raises `ValueError` for a teacher that isn't of these rows."""
        self.store, self.folder, self.teachers = store, folder, list(teachers)
        self.vocab_size: int = json.loads((folder / "vocabulary.json").read_text())
        self.left_out: list[str] = json.loads((folder / _LEFT_OUT).read_text())
        self._files: OrderedDict[int, tuple[Any, FusedRows | None]] = OrderedDict()
        columns = [self._read_offsets(number, shard) for number, shard in enumerate(shards)]
        self._shard, self._document, self._start, self._stop = (
            np.concatenate([column[part] for column in columns]) if columns else np.empty(0, dtype=np.int64)
            for part in range(4)
        )

    def __len__(self) -> int:
        return len(self._start)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences together."""
        return int((self._stop - self._start).sum())

    def __getitem__(self, number: int) -> Example:
        tokens, teacher = self._open(int(self._shard[number]))
        start, stop = int(self._start[number]), int(self._stop[number])
        ids = tokens.get_slice("ids")[start:stop].long()
        mark = int.from_bytes(hashlib.sha256(ids.numpy().tobytes()).digest()[:8]) >> 1
        rows = None if teacher is None else teacher.rows(start, stop)
        return Example(number, ids, rows, mark, tokens.get_slice("is_learned")[start:stop])

    def document(self, number: int) -> str:
        """The id of the document that a sequence is, or is a piece of."""
        names = json.loads(_names_file(self.folder, int(self._shard[number])).read_text())
        return str(names[int(self._document[number])])

    def _read_offsets(self, number: int, shard: ShardRef) -> tuple[np.ndarray, ...]:
        tokens, teacher = self._open(number)
        offsets = tokens.get_tensor("doc_offsets").numpy()
        rows = int(offsets[-1])
        if teacher is not None and (teacher.num_rows, teacher.vocab_size) != (rows, self.vocab_size):
            raise ValueError(
                f"shard {shard.index}: expected a teacher of {rows} rows over {self.vocab_size} tokens, "
                f"found {teacher.num_rows} over {teacher.vocab_size}; align and fuse for this target"
            )
        pairs = np.array(list(itertools.pairwise(offsets.tolist())), dtype=np.int64).reshape(-1, 2)
        document = np.flatnonzero(pairs[:, 1] - pairs[:, 0] > 1)
        where = np.full(len(document), number, dtype=np.int32)
        return where, document.astype(np.int32), pairs[document, 0], pairs[document, 1]

    def _open(self, number: int) -> tuple[Any, FusedRows | None]:  # Any: safetensors types none of its methods
        """A shard's files; those used last stay open. A teacher that the local cache let go of is fetched again."""
        if number not in self._files:
            tokens = safe_open(_tokens_file(self.folder, number), framework="pt")
            teacher = FusedRows(self.store.fetch(self.teachers[number])) if self.teachers else None
            self._files[number] = (tokens, teacher)
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)
        self._files.move_to_end(number)
        return self._files[number]
