"""Restart: Prefect's server killed by SIGKILL in the middle of a run, and begun again a little later, or never.

The run must go on or end with a sentence, and the server must learn how it ended; nothing that was committed may be
made again, and in the end the store must hold what an undisturbed run's does.
"""

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

from tasks.storage.claims import PREFIX
from tests.drills.outcome import Outcome
from tests.drills.workload import Workload, digests, manifests_of
from tests.e2e import servers
from tests.e2e.processes import Service

SITES = ("build_corpus", "extract", "train", "report")
OUTAGE_SECONDS = 5.0


def drill(workload: Workload, short: bool) -> Iterator[Outcome]:
    """A line for a server that comes back, and one for a server that doesn't."""
    with servers.prefect(workload.folder / "restarted") as (url, server):
        workload = replace(workload, api=url)
        outcome = Outcome("restart: Prefect's server, in mid-run")
        for step in SITES[1:2] if short else SITES:
            _interrupt(workload, server, step, OUTAGE_SECONDS, outcome)
        states = _states(url)
        if len(states) != 2 * outcome.trials or set(states) != {"COMPLETED"}:
            outcome.blame([f"expected {2 * outcome.trials} completed runs on the server, found {states}"])
        yield outcome
        if not short:
            # Prefect tries to tell how a run ended for a minute, and then that this failed
            outcome = Outcome("restart: Prefect's server is gone for good", limit=240.0)
            _interrupt(workload, server, "extract", None, outcome)
            yield outcome


def _interrupt(workload: Workload, server: Service, step: str, outage: float | None, outcome: Outcome) -> None:
    """One run, whose server dies when the step is claimed; then another, which finds what the first one made."""
    root = workload.folder / "interrupted"
    workload = replace(workload, lane=f"{workload.lane}-{step}-{outage}")
    run = workload.run(str(root))
    while run.poll() is None and not any(root.glob(f"{step}/*/{PREFIX}*")):
        time.sleep(0.002)
    server.kill()
    clock = time.monotonic()
    outcome.trials += 1
    outcome.faults += 1
    if outage is not None:
        time.sleep(outage)
        server.begin()
    code = run.wait()
    outcome.recovered(time.monotonic() - clock)
    if code not in (0, 1) or (code and not workload.last_words().startswith("error: ")):
        outcome.blame([f"{step}: ended with {code}: {workload.last_words()}"])
    committed = {address: manifest.owner for address, manifest in manifests_of(root).items()}
    if outage is None:
        server.begin()
    code = workload.run(str(root)).wait()
    outcome.blame([f"{step}: the next run ended with {code}: {workload.last_words()}"] if code else [])
    made = manifests_of(root)
    outcome.lost += sum(address not in made or made[address].owner != owner for address, owner in committed.items())
    outcome.wrong += digests(made) != workload.expected
    shutil.rmtree(root)


def _states(url: str) -> list[str]:
    """What the server believes of the runs that it knows, when none is at work."""
    request = urllib.request.Request(f"{url}/flow_runs/filter", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [str(run["state_type"]) for run in json.load(answer)]
