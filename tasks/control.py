"""Control: a teacher without knowledge in the place of a fused one."""

from fusion_core.controls import Control
from tasks.artifacts import FusedRef, Runtime, ScoredRef
from tasks.formats.shards import read_fused, read_scored, write_fused
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=1)
def control_teacher(target: ScoredRef, fused: FusedRef, control: Control, *, runtime: Runtime, out: Output) -> FusedRef:
    """The control's rows where the fused teacher has some: `fused.safetensors`."""
    store = open_store(runtime)
    made = control(read_fused(store.fetch(fused)), read_scored(store.fetch(target)).tokens)
    write_fused(out.dir, made)
    out.facts |= {"rows": made.dist.num_rows, "rows_covered": int(made.dist.present.sum())}
    return out.ref(FusedRef)
