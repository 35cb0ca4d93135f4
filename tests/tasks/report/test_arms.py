"""A study's table, against its definitions by loops, and the same numbers as text."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fusion_core.spec import Spec
from tasks.artifacts import EvaluationRef, ModelRef, Runtime
from tasks.report.arms import CONTROLS, SOURCES, Arm, ArmRun, ArmTable, read_table
from tasks.report.study import CSV, MARKDOWN, PAGE, tabulate
from tasks.step import Output, step
from tasks.storage.store import open_store

SIZES = {"code": [100, 250, 70, 400], "prose": [900, 30, 60]}


class Objective(Spec):
    lm_weight: float
    seed: int


@step(version=1)
def evaluate_as(entries: list[dict[str, Any]], *, runtime: Runtime, out: Output) -> EvaluationRef:
    (out.dir / "costs.json").write_text(json.dumps(entries))
    return out.ref(EvaluationRef)


@step(version=1)
def train(name: str, spec: Objective, batches: str, *, runtime: Runtime, out: Output) -> ModelRef:
    out.facts |= {"batches_sha256": batches, "steps": 3, "sequences": 12, "tokens": 50}
    return out.ref(ModelRef)


def costs(shift: float, code: float, prose: float) -> list[dict[str, Any]]:
    """Documents of about so many bits per byte, the second document of each domain dearer by `shift`."""
    rates = {"code": code, "prose": prose}
    return [
        {
            "id": f"{domain} {n}",
            "domain": domain,
            "bytes": size,
            "nats": (rates[domain] + (n == 1) * shift) * size * math.log(2),
        }
        for domain, sizes in SIZES.items()
        for n, size in enumerate(sizes)
    ]


class Bench:
    """Arms of invented models in a store of their own."""

    def __init__(self, root: Path) -> None:
        self.runtime = Runtime(root=str(root))

    def arm(self, name: str, group: str, *runs: tuple[int | None, list[dict[str, Any]]], batches: str = "same") -> Arm:
        trained = runs[0][0] is not None
        made = [
            ArmRun(
                seed=seed,
                model=train.fn(
                    name, Objective(lm_weight=0.5, seed=seed or 0), f"{batches} {seed}", runtime=self.runtime
                )
                if trained
                else ModelRef(step="download", fingerprint=name.replace(" ", "")),
                evaluation=evaluate_as.fn(entries, runtime=self.runtime),
            )
            for seed, entries in runs
        ]
        return Arm(name=name, group=group, kind="trained" if trained else "read", runs=tuple(made))

    def table(self, *arms: Arm) -> tuple[ArmTable, Path]:
        ref = tabulate.fn("a study", list(arms), "fused", "alone", {"recipe": "<b>r</b>"}, runtime=self.runtime)
        store = open_store(self.runtime)
        return read_table(store, ref), store.fetch(ref)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArmTable, Path]:
    bench = Bench(tmp_path_factory.mktemp("study"))
    return bench.table(
        bench.arm("code model", SOURCES, (None, costs(0, 1.5, 4.0))),
        bench.arm("prose model", SOURCES, (None, costs(0, 4.0, 2.0))),
        bench.arm("fused", "Taught", (0, costs(0.1, 2.0, 2.5)), (1, costs(0.3, 2.2, 2.5))),
        bench.arm("alone", "Taught", (0, costs(0.1, 2.5, 3.0)), (1, costs(0.0, 2.4, 3.2))),
        bench.arm("shuffled", CONTROLS, (1, costs(0, 2.3, 3.3)), batches="others"),
    )


def mean_bits(*seeds: list[dict[str, Any]], domain: str | None = None) -> float:
    means = []
    for name in [domain] if domain else SIZES:
        own = [entry for entries in seeds for entry in entries if entry["domain"] == name]
        means.append(sum(e["nats"] for e in own) / sum(e["bytes"] for e in own) / math.log(2))
    return sum(means) / len(means)


FUSED, ALONE = [costs(0.1, 2.0, 2.5), costs(0.3, 2.2, 2.5)], [costs(0.1, 2.5, 3.0), costs(0.0, 2.4, 3.2)]


def test_an_arms_number_is_the_mean_over_its_seeds(made: tuple[ArmTable, Path]) -> None:
    fused = made[0].arm("fused")
    assert fused is not None
    assert fused.mean.estimate == pytest.approx(mean_bits(*FUSED))
    assert fused.domains[0].estimate == pytest.approx(mean_bits(*FUSED, domain="code"))
    assert fused.by_seed == pytest.approx([mean_bits(entries) for entries in FUSED])
    assert fused.mean.low < fused.mean.estimate < fused.mean.high


def test_arms_are_compared_seed_by_seed(made: tuple[ArmTable, Path]) -> None:
    fused, shuffled = made[0].arm("fused"), made[0].arm("shuffled")
    assert fused is not None
    assert shuffled is not None
    gain = fused.against_rival
    assert gain is not None
    assert gain.other == "alone"
    assert gain.mean.estimate == pytest.approx(mean_bits(*FUSED) / mean_bits(*ALONE) - 1)
    assert gain.domains[1].estimate == pytest.approx(
        mean_bits(*FUSED, domain="prose") / mean_bits(*ALONE, domain="prose") - 1
    )
    assert gain.by_seed == pytest.approx([mean_bits(f) / mean_bits(a) - 1 for f, a in zip(FUSED, ALONE, strict=True)])
    only_second = shuffled.against_rival
    assert only_second is not None
    assert only_second.seeds == (1,)
    assert only_second.mean.estimate == pytest.approx(mean_bits(costs(0, 2.3, 3.3)) / mean_bits(ALONE[1]) - 1)
    reverse = shuffled.main_against
    assert reverse is not None
    assert reverse.mean.estimate == pytest.approx(mean_bits(FUSED[1]) / mean_bits(costs(0, 2.3, 3.3)) - 1)


def test_what_was_not_trained_meets_the_mean_of_all_seeds(made: tuple[ArmTable, Path]) -> None:
    source = made[0].arm("code model")
    assert source is not None
    assert source.against_rival is not None
    assert (source.seeds, source.against_rival.seeds) == ((), ())
    assert source.against_rival.mean.estimate == pytest.approx(mean_bits(costs(0, 1.5, 4.0)) / mean_bits(*ALONE) - 1)


def test_the_gap_is_the_one_to_the_best_source_of_each_domain(made: tuple[ArmTable, Path]) -> None:
    fused = made[0].arm("fused")
    assert fused is not None
    code = (mean_bits(*ALONE, domain="code") - mean_bits(*FUSED, domain="code")) / (
        mean_bits(*ALONE, domain="code") - 1.5
    )
    prose = (mean_bits(*ALONE, domain="prose") - mean_bits(*FUSED, domain="prose")) / (
        mean_bits(*ALONE, domain="prose") - 2.0
    )
    assert fused.recovered == pytest.approx([code, prose, (code + prose) / 2])
    source = made[0].arm("code model")
    assert source is not None
    assert source.recovered == ()


def test_equal_batches_are_proven_by_their_digests(made: tuple[ArmTable, Path]) -> None:
    same = {arm.name: arm.training.same_batches for arm in made[0].arms if arm.training is not None}
    assert same == {"fused": True, "alone": True, "shuffled": False}


def test_every_place_where_a_trained_arm_is_worse_is_listed(made: tuple[ArmTable, Path]) -> None:
    assert [(r.arm, r.domain) for r in made[0].regressions] == [("shuffled", "prose")]


def test_markdown_page_and_csv_say_the_same(made: tuple[ArmTable, Path]) -> None:
    table, folder = made
    text, page = (folder / MARKDOWN).read_text(), (folder / PAGE).read_text()
    fused = table.arm("fused")
    assert fused is not None
    assert fused.against_rival is not None
    difference = f"{100 * fused.against_rival.mean.estimate:.1f}".replace("-", "−")
    for said in (f"{fused.mean.estimate:.3f}", difference, "shuffled †", "1 seed", "fused needs", "the best control"):
        assert said in text
        assert said in page
    assert "&lt;b&gt;r&lt;/b&gt;" in page
    assert page.count("<script") == 1  # ours, which sorts tables
    rows = list(csv.DictReader(io.StringIO((folder / CSV).read_text())))
    assert len(rows) == 5 * 3
    found = {(row["arm"], row["place"]): row for row in rows}
    assert float(found["fused", "mean"]["bits_per_byte"]) == fused.mean.estimate
    assert float(found["fused", "code"]["against_rival"]) == fused.against_rival.domains[0].estimate
    assert found["code model", "mean"]["lm_weight"] == ""
    assert found["shuffled", "code"]["same_batches"] == "False"


def test_a_table_without_main_arm_or_rival_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    table, folder = bench.table(bench.arm("other", "Taught", (0, costs(0, 2.0, 2.0))))
    assert table.arms[0].against_rival is None
    assert "fused was not measured against alone yet" in (folder / MARKDOWN).read_text()
    assert "the same batches" not in (folder / MARKDOWN).read_text()
    assert "‡" not in (folder / MARKDOWN).read_text()


def test_batches_that_nobody_compared_are_not_called_the_same(tmp_path: Path) -> None:
    bench, both = Bench(tmp_path), ((0, costs(0, 2.0, 2.5)), (1, costs(0, 2.1, 2.5)))
    arms = [
        bench.arm("alone", "Taught", *both),
        bench.arm("fused", "Taught", *both),
        bench.arm("half lost", "Taught", *both),
        bench.arm("half lost, other batches", "Taught", *both, batches="others"),
        bench.arm("lost", "Taught", both[0]),
        bench.arm("other seed", "Taught", (2, costs(0, 2.0, 2.5))),
        bench.arm("read", SOURCES, (None, costs(0, 2.0, 2.5))),
    ]
    store = open_store(bench.runtime)
    for model in (arms[2].runs[1].model, arms[3].runs[1].model, arms[4].runs[0].model):
        assert model is not None
        store.remove(f"{model.address}/MANIFEST.json")
    table, folder = bench.table(*arms)
    same = {arm.name: arm.training.same_batches for arm in table.arms if arm.training is not None}
    assert same == {
        "alone": True, "fused": True, "half lost": None, "half lost, other batches": False, "other seed": None,
    }  # fmt: skip
    marked = ["alone", "fused", "half lost ‡", "half lost, other batches †", "lost ‡", "other seed ‡", "read"]
    text, page = (folder / MARKDOWN).read_text(), Path(folder / PAGE).read_text()
    for name in marked:
        assert f"| {name} |" in text
        assert f'<th scope="row">{name}</th>' in page
    assert "not compared" in page
    gain = table.arms[5].against_rival
    assert gain is not None
    assert (gain.seeds, gain.by_seed) == ((), ())
    assert gain.mean.estimate == pytest.approx(mean_bits(costs(0, 2.0, 2.5)) / mean_bits(both[0][1], both[1][1]) - 1)


def test_arms_on_other_documents_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(ValueError, match="measured on the same documents"):
        bench.table(bench.arm("one", "A", (0, costs(0, 2, 2))), bench.arm("two", "A", (0, costs(0, 2, 2)[:-1])))
