"""The page's sections on the gate, tasks and calibration, and the sentences that the terminal shares."""

from fusion_core.metrics import Interval
from tasks.artifacts import EvaluationRef, ModelRef
from tasks.evaluation.gate_rules import BITS, Finding, ProbedText, Verdict
from tasks.evaluation.task_scores import TaskScore
from tasks.report.comparison import Comparison, Role, Standing
from tasks.report.conduct import describe_conduct, gate_line


def standing(name: str, role: Role, gate: Verdict | None = None, **fields: object) -> Standing:
    mean = Interval(1.0, 0.9, 1.1)
    fingerprint = name.replace(" ", "-")
    model = ModelRef(step="train", fingerprint=fingerprint)
    evaluation = EvaluationRef(step="evaluate", fingerprint=fingerprint)
    return Standing(
        name=name, role=role, model=model, evaluation=evaluation, domains=(mean,), mean=mean, gate=gate, **fields
    )


def verdict(*failed: bool) -> Verdict:
    return Verdict(
        findings=tuple(
            Finding(
                domain=f"d{i}",
                measure=BITS,
                model=1.2,
                target=1.0,
                difference=Interval(0.2, 0.1, 0.3),
                bound=0.02,
                failed=f,
            )
            for i, f in enumerate(failed)
        )
    )


def page(*standings: Standing) -> str:
    comparison = Comparison(
        title="t", domains=(), standings=standings, differences=(), regressions=(), resamples=1, seed=0
    )
    return "".join(describe_conduct(comparison))


def test_what_was_not_measured_has_no_section() -> None:
    assert page(standing("target", "target"), standing("fused", "fused")) == ""
    assert gate_line(standing("fused", "fused")) == ""


def test_a_failed_gate_says_where_and_why() -> None:
    shown = page(standing("fused", "fused", verdict(True, False)))
    assert "Smoke gate failed: in 1 of 2 measures" in shown
    assert "<li>bits per byte in d0: 1.200 against 1.000 before training, +20.0 %" in shown
    assert "<li>bits per byte in d1" not in shown
    assert gate_line(standing("fused", "fused", verdict(False))).startswith("Smoke gate passed: in 1 measures")


def test_scores_and_calibration_are_tables_of_all_models() -> None:
    def score(value: float) -> TaskScore:
        return TaskScore(task="arc", metric="acc_norm", value=value, stderr=0.01, questions=1234)

    shown = page(
        standing("target", "target", scores=(score(0.25),), calibration_error=0.0312),
        standing("fused", "fused", scores=(score(0.75),), calibration_error=None),
    )
    assert "arc, acc norm, 1,234 questions" in shown
    assert "0.250" in shown
    assert "0.750" in shown
    assert "0.0312" in shown


def test_what_models_write_stands_side_by_side_under_its_prompt() -> None:
    def written(text: str) -> tuple[ProbedText, ...]:
        return (ProbedText(document="d", domain="prose", prompt="Once <b>", text=text, ended=False, symptoms={}),)

    source = standing("teacher", "source")
    alone, fused = (
        standing("CLM only", "baseline", written=written("and on")),
        standing("fused", "fused", written=written("a <i>")),
    )
    shown = page(source, alone, fused)
    assert "prose, after" in shown
    assert shown.index("Once &lt;b&gt;") < shown.index("and on") < shown.index("a &lt;i&gt;")
    assert "teacher" not in shown
