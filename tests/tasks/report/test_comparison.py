"""The numbers of the comparison, against their definitions by loops."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from fusion_core.metrics import Interval
from tasks.artifacts import EvaluationRef, ModelRef, Runtime
from tasks.report import Comparison, ReportRow, read_comparison, report
from tasks.report.comparison import compare
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=1)
def evaluate_as(entries: list[dict[str, Any]], *, runtime: Runtime, out: Output) -> EvaluationRef:
    (out.dir / "costs.json").write_text(json.dumps(entries))
    return out.ref(EvaluationRef)


def costs(rates: dict[str, list[float]], sizes: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Documents with the given bits per byte and bytes."""
    return [
        {
            "id": f"{domain} {n}",
            "domain": domain,
            "bytes": sizes[domain][n],
            "nats": rate * sizes[domain][n] * math.log(2),
        }
        for domain, values in rates.items()
        for n, rate in enumerate(values)
    ]


SIZES = {"code": [100, 250, 70, 400], "prose": [900, 30, 60]}
FUSED = {"code": [2.0, 2.2, 1.8, 2.1], "prose": [2.6, 2.9, 2.4]}
ALONE = {"code": [2.3, 2.4, 2.2, 2.2], "prose": [2.7, 2.6, 2.2]}
SOURCE = {"code": [1.7, 1.7, 1.8, 1.9], "prose": [3.5, 3.4, 3.6]}


class Bench:
    """Evaluations of invented models in a store of their own."""

    def __init__(self, root: Path) -> None:
        self.runtime = Runtime(root=str(root))
        self.store = open_store(self.runtime)

    def row(self, name: str, role: str, entries: list[dict[str, Any]]) -> ReportRow:
        evaluation = evaluate_as.fn(entries, runtime=self.runtime)
        model = ModelRef(step="train", fingerprint=name)
        return ReportRow.model_validate({"name": name, "role": role, "model": model, "evaluation": evaluation})

    def compare(self, *rows: ReportRow) -> Comparison:
        return compare("test", rows, self.store)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def mean_by_loops(entries: list[dict[str, Any]]) -> float:
    nats: dict[str, float] = {}
    size: dict[str, float] = {}
    for entry in entries:
        nats[entry["domain"]] = nats.get(entry["domain"], 0.0) + entry["nats"]
        size[entry["domain"]] = size.get(entry["domain"], 0.0) + entry["bytes"]
    return sum(nats[d] / size[d] / math.log(2) for d in nats) / len(nats)


def test_estimates_are_ratios_of_sums_within_a_domain_and_means_over_domains(bench: Bench) -> None:
    fused, alone = costs(FUSED, SIZES), costs(ALONE, SIZES)
    found = bench.compare(bench.row("alone", "baseline", alone), bench.row("fused", "fused", fused))
    assert [d.name for d in found.domains] == ["code", "prose"]
    assert [(d.documents, d.bytes) for d in found.domains] == [(4, 820), (3, 990)]
    assert found.fused.mean.estimate == pytest.approx(mean_by_loops(fused), rel=1e-12)
    for n, domain in enumerate(["code", "prose"]):
        own = [e for e in fused if e["domain"] == domain]
        other = [e for e in alone if e["domain"] == domain]
        assert found.fused.domains[n].estimate == pytest.approx(mean_by_loops(own), rel=1e-12)
        expected = mean_by_loops(own) / mean_by_loops(other) - 1
        assert found.differences[0].domains[n].estimate == pytest.approx(expected, rel=1e-9)
    expected = mean_by_loops(fused) / mean_by_loops(alone) - 1
    assert found.differences[0].mean.estimate == pytest.approx(expected, rel=1e-9)


def test_interval_of_the_difference_is_that_of_a_paired_bootstrap_by_loops(bench: Bench) -> None:
    generator = random.Random(3)
    sizes = {d: [generator.randrange(50, 900) for _ in range(30)] for d in ("code", "prose")}
    alone = {d: [generator.gauss(2.5, 0.4) for _ in range(30)] for d in sizes}
    fused = {d: [rate - generator.gauss(0.1, 0.1) for rate in alone[d]] for d in sizes}
    a, b = costs(fused, sizes), costs(alone, sizes)
    found = bench.compare(bench.row("alone", "baseline", b), bench.row("fused", "fused", a)).differences[0].mean
    drawn = []
    for _ in range(4000):
        picks = [start + generator.randrange(30) for start in (0, 30) for _ in range(30)]
        drawn.append(mean_by_loops([a[p] for p in picks]) / mean_by_loops([b[p] for p in picks]) - 1)
    drawn.sort()
    width = drawn[3900] - drawn[100]
    assert found.low == pytest.approx(drawn[100], abs=0.1 * width)
    assert found.high == pytest.approx(drawn[3900], abs=0.1 * width)
    assert found.low < found.estimate < found.high


def test_rivals_are_the_target_and_the_baselines_alone(bench: Bench) -> None:
    rows = [
        bench.row("expert", "source", costs(SOURCE, SIZES)),
        bench.row("before", "target", costs(SOURCE, SIZES)),
        bench.row("alone", "baseline", costs(ALONE, SIZES)),
        bench.row("fused", "fused", costs(FUSED, SIZES)),
    ]
    found = bench.compare(*rows)
    assert [s.name for s in found.standings] == ["expert", "before", "alone", "fused"]
    assert [d.rival for d in found.differences] == ["before", "alone"]
    assert found.strongest is not None
    assert found.strongest.rival == "alone"


def test_every_place_where_the_fused_model_is_worse_is_listed(bench: Bench) -> None:
    worse = {"code": FUSED["code"], "prose": [rate + 0.25 for rate in ALONE["prose"]]}
    found = bench.compare(
        bench.row("alone", "baseline", costs(ALONE, SIZES)), bench.row("fused", "fused", costs(worse, SIZES))
    )
    assert [(r.rival, r.domain, r.certain) for r in found.regressions] == [
        ("alone", None, False),
        ("alone", "prose", True),
    ]


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        (-0.5, "fewer than its strongest rival, alone (−20.0"),
        (+0.5, "more than its strongest rival, alone (+20.0"),
        (0.0, "can’t tell it from alone"),
    ],
)
def test_verdict_says_no_more_than_the_interval_allows(bench: Bench, shift: float, said: str) -> None:
    sizes, alone = {"text": [100] * 6}, {"text": [2.0, 2.5, 3.0, 2.0, 2.5, 3.0]}
    wobble = [0.02, -0.02] * 3 if shift == 0 else [shift * rate / 2.5 for rate in alone["text"]]
    fused = {"text": [rate + w for rate, w in zip(alone["text"], wobble, strict=True)]}
    found = bench.compare(
        bench.row("alone", "target", costs(alone, sizes)), bench.row("f", "fused", costs(fused, sizes))
    )
    assert said in found.verdict


def test_a_fused_model_without_rivals_is_compared_with_nothing(bench: Bench) -> None:
    found = bench.compare(bench.row("fused", "fused", costs(FUSED, SIZES)))
    assert found.differences == found.regressions == ()
    assert "nothing to compare it with" in found.verdict


def test_models_measured_on_other_documents_are_refused_with_both_numbers(bench: Bench) -> None:
    fewer = costs(ALONE, SIZES)[:5]
    rows = [bench.row("alone", "baseline", fewer), bench.row("fused", "fused", costs(FUSED, SIZES))]
    with pytest.raises(ValueError, match=r"found 5 for 'alone' and 7 for 'fused' with 5 in common"):
        bench.compare(*rows)


@pytest.mark.parametrize("roles", [["target", "baseline"], ["fused", "fused"]])
def test_a_table_without_one_fused_model_is_refused(bench: Bench, roles: list[str]) -> None:
    rows = [bench.row(f"{n}", role, costs(FUSED, SIZES)) for n, role in enumerate(roles)]
    with pytest.raises(ValueError, match=f"exactly 1 fused model to compare, found {roles.count('fused')} among 2"):
        bench.compare(*rows)


def test_the_comparison_is_read_back_as_it_was_written(make_run: Any) -> None:
    run = make_run()
    store = open_store(run.runtime)
    written = read_comparison(store, report.fn(**run.arguments, runtime=run.runtime))
    assert written == compare("quickstart", run.rows, store)
    assert written.fused.mean == Interval(**vars(written.fused.mean))
    assert [d.rival for d in written.differences] == ["target-llama", "CLM only", "self-taught"]
