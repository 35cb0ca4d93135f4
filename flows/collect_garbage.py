"""`collect_garbage`: removes from a store what no kept run reaches; a flow, so that it can be scheduled."""

from prefect import flow

from tasks.artifacts import Runtime
from tasks.garbage import MIN_AGE_SECONDS, Garbage, find_garbage, sweep
from tasks.lineage import Library, runs
from tasks.store import open_store


@flow(name="collect-garbage", flow_run_name="collect garbage in {runtime.root}")
def collect_garbage(
    runtime: Runtime = Runtime(), min_age: float = MIN_AGE_SECONDS, delete: bool = False
) -> list[Garbage]:
    """What may go, or with `delete` what went: nothing that a kept run needs, that is younger than `min_age` seconds,
    or that somebody works on."""
    store = open_store(runtime)
    keep = [ref for record in runs(store).values() for ref in record.refs]
    garbage = find_garbage(Library.load(store), keep, min_age)
    return sweep(store, garbage) if delete else garbage
