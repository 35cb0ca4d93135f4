"""Data sets of the hub, read from a server of this machine in processes that know no other."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Runtime
from tasks.corpus import CorpusSpec, HubDataset, build_corpus

_BUILD = """
import json, sys
from tasks.artifacts import Runtime
from tasks.corpus import CorpusSpec, build_corpus
from tasks.corpora.documents import read_documents, shards_of
from tasks.storage.store import open_store

runtime = Runtime(root=sys.argv[1])
found = []
for fields in json.loads(sys.argv[2]):
    spec = CorpusSpec(documents=({"kind": "hub_dataset", "id": "someone/texts", **fields},))
    try:
        ref = build_corpus.fn(spec, [], runtime=runtime)
    except ValueError as error:
        found.append(str(error))
        continue
    pieces = [piece for shard in shards_of(ref, runtime) for piece in read_documents(open_store(runtime), shard)]
    found.append({"texts": [p.text for p in pieces], "fingerprint": ref.fingerprint})
print(json.dumps(found))
"""


def _build(hub: Any, tmp_path: Path, *fields: dict[str, str], **environment: str) -> list[Any]:
    """What becomes of a corpus per data set. datasets reads the hub's address when it is imported, hence a process."""
    given = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")} | environment
    command = [sys.executable, "-c", _BUILD, str(tmp_path / "store"), json.dumps(fields)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def _push(hub: Any, folder: Path, *texts: str) -> str:
    folder.mkdir(exist_ok=True)
    rows = "".join(json.dumps({"text": text, "body": text.upper()}) + "\n" for text in texts)
    (folder / "train.jsonl").write_text(rows)
    (folder / "test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "held out", "body": "HELD OUT"}\n'))
    return str(hub.push("someone/texts", folder))


def test_a_data_set_is_streamed_at_the_commit_that_its_revision_was_at_launch(hub: Any, tmp_path: Path) -> None:
    first = _push(hub, tmp_path / "files", "one text", "two")
    fields = ({}, {"split": "test"}, {"text_field": "body"}, {"text_field": "nothing"}, {"revision": "v9"})
    found = _build(hub, tmp_path, *fields)
    assert [entry["texts"] for entry in found[:3]] == [["one text", "two"], ["held out"], ["ONE TEXT", "TWO"]]
    assert "someone/texts (train), row 0: expected text in column 'nothing', found columns text, body" in found[3]
    assert "v9" in found[4]

    _push(hub, tmp_path / "files", "one text", "two", "three")
    moved, pinned = _build(hub, tmp_path, {}, {"revision": first})
    assert moved["texts"] == ["one text", "two", "three"]
    assert pinned == found[0]  # a commit and the branch that was there are one corpus
    assert _build(hub, tmp_path, {}, HF_HUB_OFFLINE="1") == [moved]  # the corpus that was built of what is remembered


def test_a_gated_data_set_is_refused_before_anything_is_read(hub: Any, tmp_path: Path) -> None:
    _push(hub, tmp_path / "files", "one text")
    hub.repositories["someone/texts"].is_gated = True
    spec = CorpusSpec(documents=(HubDataset(id="someone/texts"),))
    with pytest.raises(ValueError, match="HF_TOKEN"):
        build_corpus.fn(spec, [], runtime=Runtime(root=str(tmp_path / "store")))
