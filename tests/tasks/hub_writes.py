"""The half of the hub's endpoints that changes repositories, as its client calls them."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class Written:
    """What was sent, and what to do wrong.

    blobs: large files by SHA-256. visibility: of each repository that was made. messages: of commits, in order.
    writer: the only token that may write; None lets everybody. broken: large files whose upload fails, by digest.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    visibility: dict[str, str | None] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    writer: str | None = None
    breaks: bool = False


class Writes:
    """Handles POST and PUT; mixed into the request handler, whose `hub` and `_reply` it uses."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self._may_not_write():
            self._answer(403, {"error": "You don't have the required permissions"})
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            header = json.loads(body)["content"].split("---")[1]
            self._answer(200, {"errors": [], "warnings": []} | {"data": bool(yaml.safe_load(header))})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            self._answer(200, {"transfer": "basic", "objects": [self._place(o) for o in json.loads(body)["objects"]]})
        elif parts[0] == "verify":
            wanted = json.loads(body)
            self._answer(200 if len(self.hub.written.blobs.get(wanted["oid"], b"")) == wanted["size"] else 404, {})
        elif parts[:2] == ["api", "models"] and parts[-2] in ("branch", "preupload", "commit"):
            getattr(self, f"_{parts[-2]}")("/".join(parts[2:-2]), parts[-1], body)
        else:
            self._answer(404, {})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        digest = self.path.rsplit("/", 1)[1]
        assert "Authorization" not in self.headers, "the store of large files must not see tokens"
        if self.hub.written.breaks:
            self._answer(400, {"error": "the disk is full"})
            return
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.written.blobs[digest] = body
        self._answer(200, {})

    def _may_not_write(self) -> bool:
        writer = self.hub.written.writer
        return writer is not None and self.headers.get("Authorization") != f"Bearer {writer}"

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            self._answer(409, {"url": f"{self.hub.url}/{repo}"})
            return
        self.hub.written.visibility[repo] = asked.get("visibility")
        self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._answer(200, {"url": f"{self.hub.url}/{repo}"})

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.hub.written.blobs:
            return asked
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
        actions = {
            "upload": {"href": f"{elsewhere}/large/{asked['oid']}"},
            "verify": {"href": f"{self.hub.url}/verify"},
        }
        return asked | {"actions": actions}

    def _branch(self, repo: str, branch: str, body: bytes) -> None:
        revisions = self.hub.repositories[repo].revisions
        is_new = revisions.setdefault(branch, revisions["main"]) and branch not in self.hub.branches
        self.hub.branches.add(branch)
        self._answer(200 if is_new else 409, {})

    def _preupload(self, repo: str, revision: str, body: bytes) -> None:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
            | {"shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        repository = self.hub.repositories[repo]
        files = dict(repository.commits[repository.revisions[revision]])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    self.hub.written.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.written.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = self.hub.add(repo, files, revision)
        self._answer(200, {"commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        self._reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
