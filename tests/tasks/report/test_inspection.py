"""The page of an inspection: every source with its verdict, escaped, self-contained."""

import re

from tasks.preflight.findings import Inspection, ModelScores, Rows, ScoreFindings, Verdict
from tasks.report.inspection import render_inspection
from tests.tasks.preflight.test_verdicts import MODEL, pair
from tests.tasks.report.test_page import ATTACK, Reader


def inspection(name: str = "mpt", **changes: object) -> Inspection:
    scores = ModelScores(bits_per_byte={"prose": 1.25}, kept=0.9, label_kept=0.95, truncation_bits=None)
    given = {
        "title": "run",
        "target": "llama",
        "pairs": {name: pair(prose=(90, 8, 2))},
        "scores": ScoreFindings(models={name: scores}, documents_compared=4, documents_chosen_differently=1),
        "not_run": {"llama": "no weights here"},
        "needs": {"device-hours": "12.0"},
        "warnings": ("train needs more",),
        "verdicts": {name: Verdict(choice="fuse with a warning", reasons=("it never wins",))},
    }
    return Inspection.model_validate({**given, **changes})


def test_the_page_says_all_that_was_found() -> None:
    seen = Reader(render_inspection(inspection()))
    assert seen.open == []
    said = ["mpt: fuse with a warning", "it never wins", "1.250", "1 of 4 documents", "no weights here", "12.0"]
    assert [words for words in [*said, "train needs more", "</s>", "90.0"] if words not in seen.text] == []


def test_a_page_without_models_run_leaves_their_tables_out() -> None:
    seen = Reader(render_inspection(inspection(scores=None, not_run={}, needs={}, warnings=())))
    assert "A sample read" not in seen.text
    assert "Of the recipe as a whole" not in seen.text


def test_names_never_become_markup_and_nothing_is_fetched() -> None:
    page = render_inspection(inspection(ATTACK, title=ATTACK))
    assert Reader(page).tags.count("script") == 1  # ours, which sorts tables
    assert re.findall(r"https?:|@import|url\(|<link|<img| src=| href=", page) == []


def test_only_a_clean_inspection_has_no_warnings() -> None:
    assert inspection().has_warnings
    fuse = {"mpt": Verdict(choice="fuse", reasons=("fine",))}
    assert inspection(verdicts=fuse).has_warnings
    assert not inspection(verdicts=fuse, warnings=()).has_warnings
    assert Rows(common=0, bridged=0, absent=0).common_share == 0
    assert MODEL.padded_rows == 28
