"""Gate: whether a trained model got worse than its target was, in what it writes or pays, in any domain."""

from tasks.artifacts import EvaluationRef, ModelRef, ProbeRef, Runtime, VerdictRef
from tasks.evaluation.costs import Costs, check_same_documents
from tasks.evaluation.gate_rules import VERDICT, GateSpec, judge, read_probe
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=1)
def gate(
    model: ModelRef,
    probed: ProbeRef,
    before: ProbeRef,
    evaluation: EvaluationRef,
    evaluation_before: EvaluationRef,
    spec: GateSpec,
    *,
    runtime: Runtime,
    out: Output,
) -> VerdictRef:
    """The verdict (`verdict.json`), in facts as `passed` and `reasons`; `before` is the target's, untrained."""
    store = open_store(runtime)
    costs, costs_before = Costs.read(store, evaluation), Costs.read(store, evaluation_before)
    check_same_documents(["the model", "the target"], [costs, costs_before])
    verdict = judge(read_probe(store.fetch(probed)), read_probe(store.fetch(before)), costs, costs_before, spec)
    (out.dir / VERDICT).write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
    out.facts |= {"passed": verdict.passed, "reasons": list(verdict.reasons)}
    return out.ref(VerdictRef)
