"""What orchestration costs: the real `fuse_models` over many shards of a few bytes, through a real Prefect server.

    python -m tests.bench.flow [--sources 3] [--shards 200] [--json FILE]

Run once with everything to compute and once with everything cached. The time until the server has recorded what
happened is told apart from the run's own: it lags behind, and the run doesn't wait for it.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tasks.artifacts import Runtime
from tasks.running.progress import Event, listening

_SHARD = re.compile(r" \d+/\d+$")
_WARM_SHARE = 0.1  # of all events: until then, what a process loads once is being loaded


@dataclass(frozen=True)
class Cost:
    """One run. Seconds are of the run alone; `server_lag` is what the server took from then on."""

    cached: int
    computed: int
    task_runs: int
    seconds: float
    training_seconds: float
    body_seconds_per_shard: float
    seconds_per_shard: float
    memory_growth_mb: float
    server_lag: float


@dataclass
class Watch:
    """Listens to a run: what ended how, and how much memory this process had after the first tenth and at most."""

    expected: int
    ended: int = 0
    cached: int = 0
    body_seconds: float = 0.0
    shards_computed: int = 0
    training_seconds: float = 0.0
    warm: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, event: Event) -> None:
        if event.state not in ("cached", "computed"):
            return
        with self.lock:
            self.ended += 1
            self.cached += event.state == "cached"
            is_shard = _SHARD.search(event.label) is not None
            if event.state == "computed" and is_shard:
                self.shards_computed += 1
                self.body_seconds += event.seconds
            self.training_seconds += event.seconds if event.step == "train" else 0.0
            memory = psutil.Process().memory_info().rss
            if self.ended >= self.expected * _WARM_SHARE:
                self.warm = self.warm or memory
                self.most = max(self.most, memory)


@contextlib.contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """A server of its own on a free port of this machine; its API's URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
                break
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def write_recipe(folder: Path, sources: int, shards: int) -> dict[str, object]:
    """A recipe over models that know nothing and shards of one short document each."""
    from tasks.corpora.documents import shards_of
    from tasks.corpus import CorpusSpec, Files, build_corpus
    from tasks.scratch import ByteLevelBpe, Llama, init_model, train_tokenizer
    from tasks.storage.store import open_store

    texts = [f"{number:06d} shards of a few bytes each, all of them different\n" for number in range(shards)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    documents = (Files(paths=(str(folder / "texts.jsonl"),), format="jsonl"),)
    corpus = CorpusSpec(documents=documents, max_bytes=128, shard_bytes=len(texts[0]), sharding="by_size")
    runtime = Runtime(root=str(folder / "models"), device="cpu")
    read = shards_of(build_corpus.fn(corpus, [], runtime=runtime), runtime)
    assert len(read) == shards, f"expected {shards} shards, made {len(read)}"
    tokenizer = train_tokenizer.fn(read, ByteLevelBpe(vocab_size=300), runtime=runtime)
    models = []
    for seed in range(sources + 1):
        architecture = Llama(hidden_size=16, layers=1, heads=2, window=256, seed=seed)
        made = init_model.fn(tokenizer, architecture, runtime=runtime)
        models.append({"kind": "local", "path": str(open_store(runtime).fetch(made))})
    return {
        "name": "bench",
        "target": {"name": "target", "model": models[0]},
        "sources": [{"name": f"source-{n}", "model": model} for n, model in enumerate(models[1:], 1)],
        "corpus": corpus.model_dump(mode="json"),
        "extraction": {"mode": {"kind": "top_k", "k": 4}},
        "training": {"lm_weight": 0.5, "batch_sequences": 64},
    }


def run_once(recipe_file: Path, root: Path, sources: int, shards: int, workers: int) -> Cost:
    """One run in this process, which `PREFECT_API_URL` tells where the server is."""
    from prefect import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.fuse import fuse_models
    from flows.recipe import Recipe

    recipe = Recipe.model_validate_json(recipe_file.read_text())
    watch = Watch(expected=(2 * sources + 2) * shards)
    clock = time.monotonic()
    with listening(watch.hear):
        fuse_models(recipe, Runtime(root=str(root), device="cpu", max_workers=workers))
    seconds, ended = time.monotonic() - clock, time.monotonic()
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        recorded, since = -1, time.monotonic()
        while time.monotonic() - since < 5.0:  # nothing new for as long: all is recorded
            filter_ = {
                "flow_runs": {"id": {"any_": [str(flow_run.id)]}},
                "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
            }
            found = client.request("POST", "/task_runs/count", json=filter_).json()
            if found != recorded:
                recorded, since = found, time.monotonic()
            time.sleep(0.2)
    without_training = seconds - watch.training_seconds
    return Cost(
        cached=watch.cached,
        computed=watch.ended - watch.cached,
        task_runs=recorded,
        seconds=round(seconds, 2),
        training_seconds=round(watch.training_seconds, 2),
        body_seconds_per_shard=round(watch.body_seconds / max(watch.shards_computed, 1), 4),
        seconds_per_shard=round(without_training / watch.expected, 4),
        memory_growth_mb=round((watch.most - watch.warm) / 1e6, 1),
        server_lag=round(since - ended, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=3)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)  # a run in a process of its own: the folder
    arguments = parser.parse_args()
    sizes = (arguments.sources, arguments.shards)
    if arguments.once:
        print(
            json.dumps(
                asdict(run_once(arguments.once / "recipe.json", arguments.once / "store", *sizes, arguments.workers))
            )
        )
        return
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.json").write_text(json.dumps(write_recipe(folder, *sizes)))
        (folder / "prefect").mkdir()
        with prefect_server(folder / "prefect") as url:
            environment = {
                **os.environ,
                "PREFECT_API_URL": url,
                "PREFECT_LOGGING_LEVEL": "WARNING",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            }
            command = [sys.executable, "-m", "tests.bench.flow", "--once", name, "--workers", str(arguments.workers)]
            command += ["--sources", str(sizes[0]), "--shards", str(sizes[1])]
            for run in ("computed", "cached"):
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                costs[run] = json.loads(done.stdout.splitlines()[-1])
                print(f"{run}: " + ", ".join(f"{key} {value}" for key, value in costs[run].items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
