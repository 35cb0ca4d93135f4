"""`collect_garbage`: removes from a store what no kept run reaches; a flow, so that it can be scheduled."""

from prefect import flow

from tasks.artifacts import Runtime
from tasks.library.garbage import MIN_AGE_SECONDS, Garbage, find_expired, find_garbage, sweep
from tasks.library.lineage import RUNS, Library, runs
from tasks.library.retention import Retention
from tasks.secrets import hiding_secrets
from tasks.storage.store import open_store


@flow(name="collect-garbage", flow_run_name="collect garbage in {runtime.root}")
@hiding_secrets()
def collect_garbage(
    runtime: Runtime = Runtime(),
    min_age: float = MIN_AGE_SECONDS,
    delete: bool = False,
    retention: Retention = Retention(),
) -> list[Garbage]:
    """What may go, or with `delete` what went: nothing that a kept run needs, or that somebody works on.

    Args:
        runtime: Which store.
        min_age: What is younger stays, in seconds.
        delete: Remove it; without, it is only listed.
        retention: Which runs are still kept.
    """
    store = open_store(runtime)
    records = runs(store)  # before the artifacts: a run that begins meanwhile is younger than all that is judged
    library = Library.load(store)
    expired = find_expired(library, records, retention)
    gone = {item.path for item in expired}
    keep = [ref for run_id, record in records.items() if f"{RUNS}/{run_id}.json" not in gone for ref in record.refs]
    garbage = [*expired, *find_garbage(library, keep, min_age)]
    return sweep(store, garbage) if delete else garbage
