"""What the drills run: a recipe of seconds over models of a few thousand parameters, in processes that can be killed.

A run begins as a fork of this process, which has imported everything: a start takes a second instead of ten. From
there on it is `llm-fuse run`, with threads and children of its own. So this process must have no threads when it forks.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tasks.artifacts import Manifest, Runtime
from tasks.library.lineage import Library
from tasks.storage.store import Store
from tests.e2e import servers

SHARDS = 4
LEASE_SECONDS = 5.0
WORKERS = 2
LIMIT_SECONDS = 400.0


@dataclass
class Fork:
    """A process of ours, or what became of it."""

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        """The exit code. Raises `AssertionError`, after killing it, when it doesn't end in so many seconds."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"a process was expected to end within {seconds:.0f} s, found it at work")
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """Ends it as the kernel does when memory runs out: now, and without a word to its children."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def fork(act: Callable[[], int | None], log: Path) -> Fork:
    """A fork of this process that acts and ends with the code that `act` returns, or 0; its words go to the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Fork(pid)
    try:
        words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(words, 1)
        os.dup2(words, 2)
        code = act() or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass(frozen=True)
class Workload:
    """The recipe and what it reads, below a folder. Each lane has one of its own name, for its words.

    api: the URL of another Prefect server than the one that was there when Prefect was imported.
    """

    folder: Path
    lane: str = "all"
    api: str = ""

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.lane}.log"

    @property
    def modules(self) -> Path:
        """The names of all that the last process of this lane had imported."""
        return self.folder / f"{self.lane}.modules"

    def run(self, root: str, *options: str) -> Fork:
        """`llm-fuse run` of the recipe, begun."""
        how = [f"lease_seconds={LEASE_SECONDS}", "training.checkpoint_seconds=0", f"cache_dir={self.folder / 'cache'}"]
        words = ["run", str(self.recipe), "--root", root, "--device", "cpu", "--max-workers", str(WORKERS)]
        words += [word for setting in how for word in ("--runtime", setting)]
        return self.call(*words, *options)

    def call(self, *words: str) -> Fork:
        """A command of `llm-fuse`, begun."""

        def act() -> int:
            from prefect.settings import PREFECT_API_URL, temporary_settings

            from flows.cli import main

            print("---", *words, flush=True)
            with temporary_settings({PREFECT_API_URL: self.api} if self.api else {}):
                code = main(list(words))
            self.modules.write_text("\n".join(sys.modules))
            return code

        return fork(act, self.log)

    def last_words(self) -> str:
        """The last line that a process said."""
        return (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1][:600]

    @cached_property
    def expected(self) -> dict[str, dict[str, str]]:
        """SHA-256 of every data file of an undisturbed run, by the artifact's address and the file's name."""
        return digests(manifests_of(self.undisturbed))

    @cached_property
    def undisturbed(self) -> Path:
        """The root of a run that nothing happened to."""
        root = self.folder / "undisturbed"
        if not root.exists():
            assert self.run(str(root)).wait() == 0, self.last_words()
            import_all(self.modules)
        return root


def prepare(workload: Workload) -> None:
    """Writes the recipe, imports what a run needs and holds one that nothing happens to.

    Call it once Prefect's server is there: imports read where.
    """
    writer = fork(lambda: write_recipe(workload), workload.log)
    assert writer.wait() == 0, workload.last_words()
    import_all(workload.modules)
    assert workload.undisturbed.exists()


def write_recipe(workload: Workload) -> None:
    """A recipe that fuses a source with another tokenizer into a target, over four shards, and measures it."""
    from tasks.corpora.documents import shards_of
    from tasks.corpus import CorpusSpec, Files, build_corpus
    from tasks.scratch import ByteLevelBpe, GptNeoX, Llama, MetaspaceBpe, init_model, train_tokenizer
    from tasks.storage.store import open_store

    folder = workload.folder
    texts = [
        f"{number:03d}: a few words in text {number:03d}, and some more of them.\n" for number in range(6 * SHARDS)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "held.jsonl").write_text(json.dumps({"text": "Words that nobody has learned from, held out.\n"}) + "\n")
    documents = (Files(paths=(str(folder / "texts.jsonl"),), format="jsonl"),)
    corpus = CorpusSpec(documents=documents, max_bytes=96, shard_bytes=6 * len(texts[0]), sharding="by_size")
    runtime = Runtime(root=str(folder / "models"), device="cpu")
    shards = shards_of(build_corpus.fn(corpus, [], runtime=runtime), runtime)
    assert len(shards) == SHARDS, f"expected {SHARDS} shards, made {len(shards)}"
    models = []
    for architecture, learner in ((Llama, ByteLevelBpe(vocab_size=300)), (GptNeoX, MetaspaceBpe(vocab_size=400))):
        tokenizer = train_tokenizer.fn(shards, learner, runtime=runtime)
        made = init_model.fn(tokenizer, architecture(hidden_size=16, layers=1, heads=2, window=128), runtime=runtime)
        models.append({"kind": "local", "path": str(open_store(runtime).fetch(made))})
    held = {"documents": [{"kind": "files", "paths": [str(folder / "held.jsonl")], "format": "jsonl"}]}
    recipe = {
        "name": "drill",
        "target": {"name": "target", "model": models[0]},
        "sources": [{"name": "source", "model": models[1]}],
        "corpus": corpus.model_dump(mode="json"),
        "extraction": {"mode": {"kind": "top_k", "k": 4}},
        "training": {"lm_weight": 0.5, "learning_rate": 0.01, "batch_sequences": 2},
        "evaluation": {"corpus": held, "baselines": []},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    workload.modules.write_text("\n".join(sys.modules))


def manifests_of(root: str | Path) -> dict[str, Manifest]:
    """What is published below a root, by address."""
    return Library.load(Store(str(root))).manifests


def digests(manifests: dict[str, Manifest]) -> dict[str, dict[str, str]]:
    """SHA-256 by address and name, as the manifests say; of what tells the time, none."""
    return {
        address: {name: fact.sha256 for name, fact in manifest.files.items()}
        for address, manifest in manifests.items()
        if manifest.step != "report"  # its page says when what was made
    }


def import_all(names: Path) -> None:
    """Imports what a run had imported in the end, so that no later one needs to."""
    for name in names.read_text().splitlines():
        with contextlib.suppress(Exception):  # what belongs to the run itself
            importlib.import_module(name)


@contextlib.contextmanager
def prefect_server(home: Path) -> Iterator[None]:
    """A Prefect server that all runs of the block use: each with its own would take ten seconds to start."""
    with servers.prefect(home) as (url, _):
        os.environ["PREFECT_API_URL"], os.environ["PREFECT_HOME"] = url, str(home)
        yield
