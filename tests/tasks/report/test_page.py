"""The page as a reader and a browser meet it: whole, escaped, self-contained, the same every time."""

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from tasks.report import report
from tasks.report.markup import markdown_text
from tasks.storage.store import open_store

VOID = {"meta"}
ATTACK = "<script>alert('x')</script>\"&</title></style>"


class Reader(HTMLParser):
    """What a browser sees: elements, attributes and text; tags that don't match end the parse."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if not {"style", "script"} & set(self.open) else ""


def render(run: Any) -> str:
    ref = report.fn(**run.arguments, runtime=run.runtime)
    return (open_store(run.runtime).fetch(ref) / "report.html").read_text(encoding="utf-8")


def test_page_holds_every_section_and_every_model(make_run: Any) -> None:
    seen = Reader(render(make_run()))
    assert seen.open == []
    titles = ["Held-out text", "against its rivals", "by domain", "Who taught what", "Alignment", "Training", "Lineage"]
    assert [t for t in [*titles, "Time and space", "Environment", "Recipe"] if t not in seen.text] == []
    assert [n for n in ["neox", "llama", "mpt", "target-llama", "CLM only", "self-taught"] if n not in seen.text] == []
    assert seen.tags.count("svg") == 3 + 3 + 7 + 1  # rivals, domains, trainings, lineage


def test_names_and_titles_never_become_markup(make_run: Any) -> None:
    run = make_run(source_names=[ATTACK, "llama", "mpt"], target_name=ATTACK + "2", title=ATTACK)
    run.arguments["rows"][4] = run.rows[4].model_copy(update={"name": ATTACK + "3"})
    run.arguments["recipe"] = {"name": ATTACK, ATTACK: [ATTACK]}
    seen = Reader(render(run))
    assert seen.tags.count("script") == 1  # ours, which sorts tables
    assert seen.tags.count("title") == render(run).count("<title")
    assert [name for name, _ in seen.attributes if name.startswith("on")] == []
    assert ATTACK in seen.text


def test_text_of_the_corpus_never_becomes_markup(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tasks.report.conftest.DOMAINS", ("code", ATTACK, "web"))
    seen = Reader(render(make_run(title="attacked")))
    assert seen.tags.count("script") == 1
    assert ATTACK in seen.text


MARKS = [
    "[x](javascript:alert(1))",
    "![x](http://h/?secret)",
    "`a`",
    "a|b",
    "a\n# b",
    "*a* _b_ ~~c~~",
    "a #",
    "a &lt; b",
]
ESCAPES = [r"\[x\](http://evil)", r"!\[x\](http://h)", r"a\|b", r"\`a\`", "a\\", r"\\[x](http://h)"]


@pytest.mark.parametrize("text", [ATTACK, *MARKS, *ESCAPES])
def test_markdown_of_a_name_is_the_name(text: str) -> None:
    name = markdown_text(text)
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    seen = Reader(parser.render(f"# {name}\n\n| {name} | b |\n| --- | --- |\n| c | d |\n"))
    assert seen.tags == ["h1", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert seen.text.split() == [*text.split(), *text.split(), "b", "c", "d"]


def test_page_needs_no_network_and_lets_no_script_run_but_its_own(make_run: Any) -> None:
    page = render(make_run())
    before, script = page.split("<script>")
    script, after = script.split("</script>")
    assert re.findall(r"https?:|//|@import|url\(|<script|<link|<img|<iframe| src=| href=", before + after) == []
    assert re.findall(r"https?:|fetch|XMLHttp|import|eval|innerHTML|document\.write", script) == []
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in before


def test_same_artifacts_give_the_same_bytes(make_run: Any) -> None:
    run = make_run()
    ref = report.fn(**run.arguments, runtime=run.runtime)
    folder = open_store(run.runtime).fetch(ref)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(Path(run.runtime.root) / ref.address)
    assert report.fn(**run.arguments, runtime=run.runtime) == ref
    after = {path.name: path.read_bytes() for path in open_store(run.runtime).fetch(ref).iterdir()}
    assert set(before) == {"comparison.json", "report.html"}
    assert after == before


def test_equal_data_order_is_claimed_only_for_equal_batches(make_run: Any) -> None:
    same = Reader(render(make_run())).text
    assert "By their SHA-256, CLM only, self-taught and fused saw the same batches in the same order." in same
    other = Reader(render(make_run(baseline_epochs=3.0))).text
    assert "By their SHA-256, self-taught and fused saw" in other
    assert "Other batches, or in another order: CLM only (180 steps against 120)." in other


def test_regressions_stand_right_below_the_verdict(make_run: Any) -> None:
    seen = Reader(render(make_run(fused_bits=(2.0, 2.9, 2.2)))).text
    verdict, rest = seen.split("It is worse here:")
    assert "The fused model needs" in verdict
    assert rest.startswith("prose: +")
    assert "In no domain is it worse" in Reader(render(make_run(title="better"))).text


def test_shards_add_up_in_coverage_and_wins(make_run: Any) -> None:
    seen = Reader(render(make_run())).text
    assert (
        "neox33,00085.0\N{NO-BREAK SPACE}%80.0\N{NO-BREAK SPACE}%15.0\N{NO-BREAK SPACE}%5.0\N{NO-BREAK SPACE}%1" in seen
    )
    assert "code9066.7\N{NO-BREAK SPACE}%" in seen  # the target won 60 of 90 documents of three shards


def test_what_the_store_no_longer_holds_is_left_out(make_run: Any) -> None:
    run = make_run()
    for step in ("train", "align", "fuse", "init_model"):
        shutil.rmtree(Path(run.runtime.root) / step)
    seen = Reader(render(run))
    assert [t for t in ("Who taught what", "Alignment", "Training loss") if t in seen.text] == []
    assert "Lineage" in seen.text


@pytest.mark.parametrize("kept", [["fused"], ["target", "fused"]])
def test_a_short_table_makes_a_page_too(make_run: Any, kept: list[str]) -> None:
    run = make_run()
    run.arguments["rows"] = [row for row in run.rows if row.role in kept]
    seen = Reader(render(run))
    assert seen.open == []
    assert ("against its rivals" in seen.text) == ("target" in kept)
