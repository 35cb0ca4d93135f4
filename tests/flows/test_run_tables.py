"""What the run page's tables say of events and manifests."""

import base64
import re
from xml.etree import ElementTree

from flows.run_page import Work
from flows.run_tables import Grid, comparison_markdown, lineage_markdown
from flows.study_page import arms_grid
from fusion_core.metrics import Interval
from tasks.artifacts import AlignedRef, EvaluationRef, Manifest, ModelRef, Ref, ScoredRef
from tasks.report import Comparison, Difference, Domain, Standing
from tasks.running.planning import Planned
from tasks.running.progress import Event

RUN = "this-run"


def manifest_of(ref: Ref, inputs: tuple[Ref, ...] = (), run: str = RUN, **facts: object) -> Manifest:
    fields = {"step": ref.step, "version": 1, "fingerprint": ref.fingerprint, "ref": ref, "arguments": {}}
    ends = {"owner": "me", "started_at": "2026-01-01", "seconds": 2.5, "flow_run_id": run}
    return Manifest(**fields, **ends, inputs=list(inputs), facts=facts)  # type: ignore[arg-type]


def planned(label: str, ref: Ref) -> Planned:
    return Planned(ref.step, label, ref, None)


def grid_of(*events: Event) -> list[dict[str, str]]:
    grid = Grid()
    for event in events:
        grid.add(event)
    return grid.rows()


def test_a_shard_is_shown_from_start_to_end() -> None:
    label = "extract neox 001/002"
    steps = [
        (Event("extract", label, "waiting"), "waiting"),
        (Event("extract", label, "started"), "running"),
        (Event("extract", label, "work", done=1, total=4), "running 25%"),
        (Event("extract", label, "failed", message="OSError: the\nnet"), "failed: OSError: the net"),
        (Event("extract", label, "started"), "retried, running"),
        (Event("extract", label, "computed", seconds=1.25), "retried, computed 1.2 s"),
    ]
    for count, (_, shown) in enumerate(steps, 1):
        assert grid_of(*(event for event, _ in steps[:count])) == [{"shard": "001", "extract neox": shown}]


def test_stages_are_columns_and_steps_without_shards_are_left_out() -> None:
    rows = grid_of(
        Event("extract", "extract neox 002/002", "cached"),
        Event("align", "align neox 001/002", "computed", seconds=1),
        Event("train", "train neox", "computed", seconds=9),
    )
    assert rows == [
        {"shard": "001", "extract neox": "", "align neox": "computed 1.0 s"},
        {"shard": "002", "extract neox": "cached", "align neox": ""},
    ]


def test_the_store_knows_what_no_event_told() -> None:
    first, second, third = (ScoredRef(step="extract", fingerprint=name) for name in "abc")
    entries = [planned(f"extract neox 00{n}/003", ref) for n, ref in enumerate((first, second, third), 1)]
    grid = Grid()
    manifests = {
        first.address: manifest_of(first, quarantined=["d1"]),
        second.address: manifest_of(second, run="other"),
    }
    grid.complete(entries, manifests, RUN)
    shown = [row["extract neox"] for row in grid.rows()]
    assert shown == ["computed 2.5 s, 1 quarantined", "cached", "not computed"]


def test_the_picture_of_a_lineage_holds_names_as_text() -> None:
    attack = "<script>alert(1)</script>"
    model = ModelRef(step="download", fingerprint="m")
    manifest = manifest_of(model).model_copy(update={"label": f"download {attack}"})
    text = lineage_markdown({model.address: manifest}, model.address)
    assert attack not in text
    data = re.search(r"base64,([^)]+)\)", text)
    assert data is not None
    picture = ElementTree.fromstring(base64.b64decode(data[1]))
    assert [node.tag for node in picture.iter() if node.tag.endswith("script")] == []
    assert any(attack in (node.text or "") for node in picture.iter())


def test_lineage_joins_shards_and_leads_from_inputs_to_what_was_made() -> None:
    model = ModelRef(step="download", fingerprint="m")
    scored = [ScoredRef(step="extract", fingerprint=f"s{n}") for n in range(2)]
    aligned = [AlignedRef(step="align", fingerprint=f"a{n}") for n in range(2)]
    manifests = {model.address: manifest_of(model)}
    manifests |= {ref.address: manifest_of(ref, (model,)) for ref in scored}
    manifests |= {ref.address: manifest_of(ref, (scored[n],)) for n, ref in enumerate(aligned)}
    text = lineage_markdown(manifests, aligned[0].address)
    data = re.search(r"\(data:image/svg\+xml;base64,(\S+)\)", text)
    assert data is not None
    picture = ElementTree.fromstring(base64.b64decode(data[1]))
    assert int(picture.attrib["width"]) > 0
    boxes = [group for group in picture.iter() if group.attrib.get("class", "").startswith("box")]
    assert [box.attrib["class"] for box in boxes] == ["box", "box", "box strong"]
    assert f"`llm-fuse lineage {aligned[0].address}`" in text


def test_the_comparison_names_verdict_models_and_report() -> None:
    def standing(name: str, role: str, bits: float) -> Standing:
        interval = Interval(bits, bits - 0.1, bits + 0.1)
        refs = {
            "model": ModelRef(step="train", fingerprint="m"),
            "evaluation": EvaluationRef(step="evaluate", fingerprint="e"),
        }
        return Standing(name=name, role=role, domains=(interval,), mean=interval, **refs)  # type: ignore[arg-type]

    gain = Interval(-0.1, -0.12, -0.08)
    comparison = Comparison(
        title="t",
        domains=(Domain(name="web", documents=2, bytes=20),),
        standings=(standing("a|b", "target", 2.0), standing("fused", "fused", 1.8)),
        differences=(Difference(rival="a|b", role="target", mean=gain, domains=(gain,)),),
        regressions=(),
        resamples=10,
        seed=0,
    )
    text = comparison_markdown(comparison, "s3://bucket/report.html")
    assert comparison.verdict.replace("|", "\\|") in text
    assert "| a\\|b | target | 2.000 | **2.000** |" in text
    assert "`s3://bucket/report.html`" in text


def test_progress_tells_speed_and_time_left() -> None:
    work = Work("extract neox 001/002", None, since=100.0, first=0, done=500, total=2000, unit="tokens")
    assert work.sentence(110.0) == "extract neox 001/002: 500 of 2,000 tokens, 50 tokens/s, 30 s left"
    work = Work("train", None, since=100.0, first=1, done=1, total=9000, unit="steps")
    assert work.sentence(110.0) == "train: 1 of 9,000 steps"
    work.done = 2
    assert work.sentence(110.0) == "train: 2 of 9,000 steps, 0.1 steps/s, 24 h 59 min left"


def test_arms_are_rows_with_their_model_and_evaluation() -> None:
    grid = arms_grid("student")
    for event in (
        Event("train", "train student", "computed", seconds=9),  # the target itself, made from nothing
        Event("train", "train student fused, seed 0", "computed", seconds=2),
        Event("merge", "merge both", "started"),
        Event("evaluate", "evaluate fused, seed 0", "failed", message="OSError: gone"),
        Event("extract", "extract student 001/002", "cached"),
    ):
        grid.add(event)
    assert grid.rows() == [
        {"arm": "both", "model": "running", "evaluation": ""},
        {"arm": "fused, seed 0", "model": "computed 2.0 s", "evaluation": "failed: OSError: gone"},
    ]


def test_speed_is_that_of_this_attempt_and_of_this_phase() -> None:
    def told(done: int, unit: str = "steps") -> Event:
        return Event("train", "train student", "work", done=done, total=100, unit=unit)

    work = Work.begin(told(40))  # a training that goes on from a checkpoint
    assert (work.first, work.sentence(work.since + 10)) == (40, "train student: 40 of 100 steps")
    assert work.is_continued_by(told(41))
    assert not work.is_continued_by(told(30))
    assert not work.is_continued_by(told(41, "documents"))
