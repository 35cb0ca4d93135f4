"""The collected texts: honest splits, domains that are what they say, the same bytes every time."""

import itertools
import random
import re
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tasks.artifacts import Runtime
from tasks.corpora.installed import InstalledText, is_prose
from tasks.storage.store import open_store
from tasks.texts import (
    InstalledTexts,
    Split,
    collect_texts,
    drop_near_duplicates,
    shingle,
    split_of,
    take_lines,
    take_per_domain,
)

# small, so that the test is fast: one distribution, a fifth of its files
SPEC = InstalledTexts(
    distributions=("numpy",),
    sources=Split(share=0.1, max_bytes=300_000, document_bytes=20_000),
    target=Split(share=0.03, max_bytes=100_000, document_bytes=12_000),
    fusion=Split(share=0.03, max_bytes=100_000, document_bytes=8_000),
    validation=Split(share=0.02, max_bytes=20_000, document_bytes=2_000),
    test=Split(share=0.04, max_bytes=30_000, document_bytes=2_000),
)
Row = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runtime = Runtime(root=str(tmp_path_factory.mktemp("store")))
    return open_store(runtime).fetch(collect_texts.fn(SPEC, runtime=runtime))


@pytest.fixture(scope="module")
def splits(folder: Path) -> dict[str, list[Row]]:
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in SPEC.splits}


def runs_of_five(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def text(words: str, source: str = "a.py") -> InstalledText:
    return InstalledText(words, "prose", source)


def test_no_file_is_in_two_splits(splits: dict[str, list[Row]]) -> None:
    homes = defaultdict(set)
    for name, rows in splits.items():
        for row in rows:
            homes[row["source"]].add(name)
    assert len(homes) > 60
    assert all(len(names) == 1 for names in homes.values())


def test_no_near_duplicates_across_splits(splits: dict[str, list[Row]]) -> None:
    draw = random.Random(0)
    sample = {
        name: [runs_of_five(r["text"]) for r in draw.sample(rows, min(40, len(rows)))] for name, rows in splits.items()
    }
    for left, right in itertools.combinations(sample, 2):
        for a, b in itertools.product(sample[left], sample[right]):
            assert len(a & b) <= SPEC.max_overlap * len(a | b), (left, right)


def test_every_split_has_every_domain_within_its_bounds(splits: dict[str, list[Row]]) -> None:
    for name, split in SPEC.splits.items():
        used: dict[str, int] = defaultdict(int)
        for row in splits[name]:
            length = len(row["text"].encode())
            assert length <= split.document_bytes
            used[row["domain"]] += length
        assert set(used) == {"python", "prose", "cpp"}
        assert max(used.values()) <= split.max_bytes


def test_domains_look_as_claimed(splits: dict[str, list[Row]]) -> None:
    of_domain = {
        domain: [row["text"] for row in splits["sources"] if row["domain"] == domain]
        for domain in ("python", "prose", "cpp")
    }
    marks = {
        "python": lambda t: bool(re.search(r"^\s*(def|class|import|from) |^\w+ = ", t, re.MULTILINE)),
        "prose": lambda t: all(is_prose(p) for p in t.split("\n\n")[1:-1]),  # the outer ones may be cut
        "cpp": lambda t: bool(re.search(r"^\s*#\s*(include|pragma|if|define)|::|;$|[{}]", t, re.MULTILINE)),
    }
    for domain, looks_right in marks.items():
        assert sum(map(looks_right, of_domain[domain])) >= 0.95 * len(of_domain[domain]), domain


def test_rows_name_no_place_of_this_machine(splits: dict[str, list[Row]], folder: Path) -> None:
    for row in itertools.chain.from_iterable(splits.values()):
        assert not row["source"].startswith(("/", "."))
        assert ":" not in row["source"]
        assert str(Path.home()) not in row["text"]


def test_ids_are_unique_and_depend_on_the_text_alone(splits: dict[str, list[Row]]) -> None:
    rows = list(itertools.chain.from_iterable(splits.values()))
    assert len({row["id"] for row in rows}) == len(rows)
    assert rows[0]["id"] == text(rows[0]["text"], "elsewhere").id


def test_two_collections_have_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    runtime = Runtime(root=str(tmp_path))
    again = open_store(runtime).fetch(collect_texts.fn(SPEC, runtime=runtime))
    for name in SPEC.splits:
        assert (again / f"{name}.parquet").read_bytes() == (folder / f"{name}.parquet").read_bytes()


def test_a_missing_distribution_is_refused(tmp_path: Path) -> None:
    spec = InstalledTexts(distributions=("no-such-thing",))
    with pytest.raises(ValueError, match="'no-such-thing', found it not installed"):
        collect_texts.fn(spec, runtime=Runtime(root=str(tmp_path)))


def test_shares_of_files_are_as_specified() -> None:
    counts: dict[str, int] = defaultdict(int)
    for i in range(20_000):
        counts[split_of(f"file{i}.py", InstalledTexts())] += 1
    for name, split in InstalledTexts().splits.items():
        assert counts[name] / 20_000 == pytest.approx(split.share, abs=0.01)


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"at most 1, found 1\.35"):
        InstalledTexts(sources=Split(share=1.0, max_bytes=1, document_bytes=1))


def test_another_salt_moves_files() -> None:
    salted = InstalledTexts(salt="other")
    moved = sum(split_of(f"file{i}.py", InstalledTexts()) != split_of(f"file{i}.py", salted) for i in range(1000))
    assert moved > 300


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_dropped_by_definition(seed: int) -> None:
    draw = random.Random(seed)
    base = [f"w{draw.randrange(400)}" for _ in range(300)]
    texts = []
    for i in range(12):  # runs of one long text, with more or less words exchanged
        start, length, noise = draw.randrange(150), draw.randrange(40, 150), draw.choice([0.0, 0.05, 0.5])
        words = [w if draw.random() > noise else f"x{draw.randrange(10**6)}" for w in base[start : start + length]]
        texts.append(text(" ".join(words), f"{i:02}.py"))

    expected, seen = set(), set[tuple[str, ...]]()
    for t in sorted(texts, key=lambda t: (-len(runs_of_five(t.text)), t.source)):
        own = runs_of_five(t.text)
        if len(own & seen) <= 0.4 * len(own) and own - seen:
            expected.add(t.source)
        seen |= own
    assert {t.source for t in drop_near_duplicates(texts, 0.4)} == expected
    assert 0 < len(expected) < len(texts)


def test_case_spaces_and_symbols_hide_no_duplicate() -> None:
    plain, disguised = (
        text("one two three four five six seven"),
        text("One, TWO;\n three four -- five (six)  seven", "b.py"),
    )
    assert drop_near_duplicates([disguised, plain], 0.4) == [plain]


def test_empty_and_wordless_texts() -> None:
    assert drop_near_duplicates([], 0.4) == []
    assert drop_near_duplicates([text(""), text("{} ; ()")], 0.4) == []
    assert [len(s) for s in shingle(["", "one two three four", "one two three four five"])] == [0, 0, 1]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_runs_of_lines_are_whole_and_fit(place: float) -> None:
    lines = [f"line {i} é\n" for i in range(100)]
    taken = take_lines("".join(lines), 200, place)
    assert 150 < len(taken.encode()) <= 200
    assert set(taken.split("\n")) <= {line.rstrip("\n") for line in lines}
    assert take_lines("".join(lines), 10**6, place) == "".join(lines)


def test_lines_longer_than_the_limit_give_nothing() -> None:
    assert take_lines("x" * 500, 100, 0.5) == ""
    assert take_lines("", 100, 0.5) == ""


def test_taking_stops_at_the_bytes_of_each_domain() -> None:
    documents = [InstalledText(f"{i:04}", "cpp" if i % 2 else "prose", f"{i}.h") for i in range(40)]
    taken = take_per_domain(documents, 30)
    assert [d.domain for d in taken].count("cpp") == [d.domain for d in taken].count("prose") == 7
    assert take_per_domain(documents[::-1], 30) == taken
