"""The picture of a lineage: which artifacts share a box, and that boxes lie where a reader expects them."""

import re
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tasks.report.evidence import Manifests, read_ancestry
from tasks.report.lineage_graph import Box, collapse, draw_lineage
from tasks.storage.store import open_store


def ancestry(run: Any) -> Manifests:
    refs = [ref for row in run.rows for ref in (row.model, row.evaluation)]
    return read_ancestry(open_store(run.runtime), refs)


def by_name(boxes: dict[str, Box]) -> dict[tuple[str, str], Box]:
    return {(box.step, box.subject): box for box in boxes.values()}


def test_ancestry_reaches_the_texts_and_nothing_twice(make_run: Any) -> None:
    steps = Counter(manifest.step for manifest in ancestry(make_run()).values())
    assert steps == {
        "collect_texts": 1, "build_corpus": 6, "init_model": 4, "train": 7, "extract": 12, "map_vocab": 3,
        "align": 9, "fuse": 6, "evaluate": 7,
    }  # fmt: skip


def test_shards_share_a_box_and_models_do_not(make_run: Any) -> None:
    boxes = by_name(collapse(ancestry(make_run()), {}))
    extracts = {subject: len(box.manifests) for (step, subject), box in boxes.items() if step == "extract"}
    assert extracts == {"neox": 3, "llama": 3, "mpt": 3, "target-llama": 3}
    assert {s for step, s in boxes if step == "fuse"} == {"", "self"}
    assert len([1 for step, _ in boxes if step == "train"]) == 7


def test_trainings_that_differ_in_their_spec_alone_are_two_boxes(make_run: Any) -> None:
    run = make_run()
    manifests = ancestry(run) | ancestry(make_run(baseline_epochs=3.0))
    trained = [box for box in collapse(manifests, {}).values() if box.subject == "target-llama CLM only"]
    assert [len(box.manifests) for box in trained if box.step == "train"] == [1, 1]


def test_given_names_replace_labels(make_run: Any) -> None:
    run = make_run()
    names = {run.rows[-1].model.address: "the fused one"}
    assert ("train", "the fused one") in by_name(collapse(ancestry(run), names))


def test_a_deleted_parent_leaves_its_children_standing(make_run: Any) -> None:
    run = make_run()
    shutil.rmtree(Path(run.runtime.root) / "build_corpus")
    boxes = collapse(ancestry(run), {})
    assert {box.step for box in boxes.values() if not box.parents} == {"init_model"}
    assert len(by_name(boxes)["extract", "neox"].manifests) == 3


def rectangles(picture: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)"', picture)
    return [(float(x), float(y), float(width), float(height)) for x, y, width, height in found]


@pytest.mark.parametrize("sources", [["a"], ["a", "b", "c"], [f"source {n}" for n in range(9)]])
def test_boxes_lie_below_their_parents_side_by_side_within_the_picture(make_run: Any, sources: list[str]) -> None:
    manifests = ancestry(make_run(source_names=sources))
    boxes = collapse(manifests, {})
    picture = draw_lineage(manifests, {}, marked="")
    places = dict(zip(boxes, rectangles(picture), strict=True))
    for key, box in boxes.items():
        for parent in box.parents:
            assert places[parent][1] + places[parent][3] < places[key][1]
    for layer in {y for _, y, _, _ in places.values()}:
        row = sorted(x for x, y, _, _ in places.values() if y == layer)
        assert all(right - left >= 112 for left, right in pairwise(row))
    view = re.search(r'viewBox="0 -1 (\d+) ', picture)
    assert view is not None
    assert min(x for x, _, _, _ in places.values()) >= 0
    assert max(x + width for x, _, width, _ in places.values()) <= float(view[1]) + 1


def test_only_the_marked_artifact_stands_out(make_run: Any) -> None:
    run = make_run()
    picture = draw_lineage(ancestry(run), {}, marked=run.rows[-1].model.address)
    assert picture.count('class="box strong"') == 1
