"""What a person can get wrong in recipes, options and stores: each ends with one line that says what to do, code 2."""

import io
import re
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from flows.cli.progress import Bars
from flows.cli.tables import make_table, print_result
from tasks.running.progress import Event
from tests.conftest import ModelFactory
from tests.flows.conftest import Bench, Cli, write_bench

Words = Callable[[Bench], list[str]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Bench:
    """One bench for all: what is refused leaves nothing behind."""
    return write_bench(tmp_path_factory.mktemp("refused") / "bench", tiny_llama(), tiny_neox())


@pytest.fixture(autouse=True)
def _at_home(shared: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(shared.folder)
    monkeypatch.setenv("LLM_FUSE_ROOT", str(shared.root))
    yield
    assert not shared.root.exists() or list(shared.root.iterdir()) == []


def changed(*overrides: str, command: str = "plan") -> Words:
    return lambda bench: [command, str(bench.recipe), *(word for o in overrides for word in ("--set", o))]


def file(text: str | bytes, command: str = "plan") -> Words:
    def words(bench: Bench) -> list[str]:
        path = bench.folder / "bad.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return [command, str(path)]

    return words


def also(text: str) -> Words:
    """The recipe, with more YAML behind it."""
    return lambda bench: file(bench.recipe.read_text() + text)(bench)


def root(place: str, command: str = "plan") -> Words:
    return lambda bench: [command, str(bench.recipe), "--root", place]


def words(*given: str) -> Words:
    return lambda bench: [str(bench.recipe) if word == "RECIPE" else word for word in given]


def copies(levels: int, merge: str = "") -> str:
    """A few lines of YAML that stand for 10**levels values."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        below = f"[{', '.join([f'*a{level - 1}'] * 10)}]"
        lines.append(f"a{level}: &a{level} {{{merge} {below}}}" if merge else f"a{level}: &a{level} {below}")
    return "\n".join(lines) + "\n"


RECIPES: dict[str, tuple[Words, str]] = {
    "nothing in it": (file(""), "expected a mapping of fields, found NoneType"),
    "a list": (file("- a\n"), "expected a mapping of fields, found list"),
    "a sentence": (file("fuse them all"), "expected a mapping of fields, found str"),
    "not YAML": (file("name: [\n"), "expected YAML, found while parsing"),
    "not text": (file(b"name: \xff\xfe"), "expected a readable UTF-8 file, found 'utf-8' codec can't decode byte 0xff"),
    "a zero byte": (also("description: a\0b\n"), "expected YAML, found unacceptable character #x0000"),
    "too large": (file("#" * 200_001), "expected at most 200,000 bytes, found more"),
    "nested without end": (file("[" * 5_000), "expected values nested at most 50 deep"),
    "part of itself": (also("description: &a [*a]\n"), "expected values nested at most 50 deep"),
    "copies of copies": (file(copies(9)), "expected at most 100,000 values, found more once anchors are copied"),
    "merged copies": (file(copies(9, "<<:")), "expected at most 100,000 values, found more once anchors are copied"),
    "an object": (also("description: !!python/object/apply:os.system [id]\n"), "constructor for the tag .*os.system"),
    "a module": (also("description: !!python/module:os\n"), "could not determine a constructor"),
    "a date that isn't one": (also("description: 2026-99-99\n"), "value that can't be read: month must be in 1..12"),
    "a date": (also("description: 2026-01-01\n"), r"description: input should be a valid string, found datetime\.date"),
    "a number of 5000 digits": (also(f"min_shards: {'9' * 5000}\n"), "value that can't be read: Exceeds the limit"),
    "a number for a key": (also("1: 2\n"), "1: keys should be strings, found 1"),
    "a list for a key": (also("? [a]\n: 2\n"), "expected YAML, .*unhashable key"),
    "a study": (file("recipe: quickstart\n", "run"), "expected a recipe, found a study of one; llm-fuse compare"),
    "a study of itself": (file("recipe: bad.yaml\n", "compare"), "expected a recipe, found a study of one"),
    "a study of a list": (file("recipe: [1]\n", "compare"), r"recipe: input should be a valid string, found \[1\]"),
    "a recipe for a study": (words("compare", "RECIPE"), "target: unknown key"),
}

FIELDS: dict[str, tuple[Words, str]] = {
    "an unknown field": (changed("training.lm_weigth=0.5"), r"training\.lm_weigth: unknown key"),
    "a weight above one": (changed("training.lm_weight=2"), r"training\.lm_weight: .*equal to 1, found 2"),
    "a weight that is no number": (changed("training.lm_weight=.nan"), r"training\.lm_weight: .*found nan"),
    "an endless rate": (changed("training.learning_rate=.inf"), r"training\.learning_rate: .*found inf"),
    "no epochs": (changed("training.epochs=0"), r"training\.epochs: .*greater than 0, found 0"),
    "an unknown strategy": (changed("fusion.kind=vote"), r"fusion\.kind: expected one of .*found 'vote'"),
    "a strategy without kind": (changed("fusion={}"), r"fusion: expected a mapping with a kind, found \{\}"),
    "a strategy's name alone": (changed("fusion=min_ce"), "fusion: expected a mapping with a kind, found 'min_ce'"),
    "no sources": (changed("sources=[]"), "sources: expected at least 1, found 0"),
    "a source that isn't there": (changed("sources.7.name=x"), r"sources\.7\.name: .*found a list of 1 \(from 0 on\)"),
    "a name twice": (changed("sources.0.name=student"), "must differ, found student twice"),
    "an empty name": (changed('target.name=""'), r"target\.name: .*at least 1 character"),
    "a name of a page": (changed(f"target.name={'n' * 61}"), r"target\.name: .*at most 60 characters"),
    "a name that clears the screen": (changed(r'name="\x1b[2J"'), r"name: expected .*printable.*found '\\x1b' in it"),
    "a name that is read backwards": (changed(r'sources.0.name="\u202egnp"'), r"name: expected .*printable.*'\\u202e'"),
    "a domain of two lines": (
        changed(r'corpus.documents.0.domain="a\nb"'),
        r"domain: expected .*printable.*'\\n' in it",
    ),
    "half a reference": (changed("reference=3"), "reference: input should be a valid boolean, found 3"),
    "too little to cut": (changed("corpus.max_bytes=1"), r"corpus\.max_bytes: .*equal to 16, found 1"),
    "no documents": (changed("corpus.documents=[]"), r"corpus\.documents: expected at least 1, found 0"),
    "a repository above": (
        changed("target.model={kind: hub, id: ../x}"),
        "repository as the hub names it.*found '../x'",
    ),
    "a revision above": (
        changed("target.model={kind: hub, id: a/b, revision: ../x}"),
        r"branch, a tag .*found '\.\./x'",
    ),
    "code of a branch": (
        changed("target.model={kind: hub, id: a/b, trust_remote_code: true}"),
        "target.model: expected the revision .* to be a commit of 40 hex digits, found 'main'",
    ),
    "a data set above": (
        changed("corpus.documents.0={kind: hub_dataset, id: ../../etc}"),
        r"like owner/name.*'\.\./\.\./e",
    ),
    "text behind a password": (
        changed("corpus.documents.0.paths=['https://me:pass@host/x']"),
        r"corpus\.documents\.0\.paths\.0: expected an address without credentials, found https://\*\*\*@host/x; put",
    ),
    "a served model behind a password": (
        changed("extraction.engine={kind: endpoint, url: 'https://me:pass@host/v1', served_model: x}"),
        r"extraction\.engine\.url: expected an address without credentials, found https://\*\*\*@host/v1; put",
    ),
    "text behind a signature": (
        changed("corpus.documents.0.paths=['https://host/x?X-Amz-Signature=5e']"),
        r"found https://host/x\?X-Amz-Sig\w+=\*+;",
    ),
}

OPTIONS: dict[str, tuple[Words, str]] = {
    "a recipe that isn't there": (words("plan", "absent.yaml"), "recipe 'absent.yaml': expected a YAML file or one of"),
    "a recipe without a name": (words("plan", ""), "recipe '': expected a readable UTF-8 file"),
    "a recipe that is a folder": (words("plan", "."), "recipe '.': expected a readable UTF-8 file, .*Is a directory"),
    "a recipe with a zero in its name": (words("plan", "a\0b.yaml"), r"recipe 'a\\x00b.yaml': .*embedded null byte"),
    "a recipe of an unknown kind": (words("plan", "nowhere://a/b.yaml"), "Protocol not known: nowhere"),
    "a recipe without its client": (words("plan", "gs://a/b.yaml"), "recipe 'gs://a/b.yaml': .*install gcsfs"),
    "a recipe behind a password": (
        words("plan", "s3://key:word@bucket/a.yaml"),
        r"found s3://\*\*\*@bucket/a.yaml; put",
    ),
    "an override without a value": (changed("training"), "--set training: expected key.path=value, found no '='"),
    "an override of nothing": (changed("=1"), "--set '': expected names with dots"),
    "an override of dots": (changed("training..seed=1"), r"--set 'training\.\.seed': expected names with dots"),
    "an override that isn't YAML": (changed("name=["), r"--set name: expected a YAML value, found '\['"),
    "an override that is deep": (changed(f"name={'[' * 3000}"), r"--set name: expected a YAML value, found '\[+\.\.\."),
    "an override of half a letter": (changed("name=a\udcff"), r"--set name: expected a YAML value, found 'a\\udcff'"),
    "a setting that isn't one": (words("run", "RECIPE", "--runtime", "worker=3"), "--runtime worker: unknown key"),
    "a lease of no time": (
        words("run", "RECIPE", "--runtime", "lease_seconds=0"),
        "lease_seconds: .*greater than 0, found 0",
    ),
    "no workers": (words("run", "RECIPE", "--max-workers", "0"), "Invalid value for '--max-workers'"),
    "a step that isn't one": (
        words("refresh", "RECIPE", "dance"),
        "expected a step or a label .*found 'dance'; there are",
    ),
    "no command": (words("fuse"), "No such command 'fuse'"),
    "a run that wasn't": (words("report", "zz"), "expected a kept run 'zz', found none"),
    "an artifact above": (words("lineage", "../.."), r"'\.\./\.\.': expected step/fingerprint"),
    "an artifact with a zero": (words("verify", "a\0b"), r"'a\\x00b': expected step/fingerprint"),
    "an age that is no number": (words("gc", "--min-age", "nan"), "Invalid value for '--min-age'"),
    "half of what is compared": (words("inspect", "a", "b"), "inspect: expected one recipe, found 2 words and 0 texts"),
    "a task without a name": (
        words("evaluate", "a/b", "--tasks", "x#"),
        "name: string should have at least 1 character",
    ),
    "a task that is nothing": (
        words("evaluate", "a/b", "--tasks", ""),
        "name: string should have at least 1 character",
    ),
    "a model that can't be": (
        words("init", "a b", "--target", "x"),
        "expected a repository as the hub names it.*'a b'",
    ),
    "a model of no name": (words("init", "", "--target", "x"), "path: string should have at least 1 character"),
    "a page in no folder": (
        words("init", "a", "--target", "b", "-o", "no/such/x"),
        "No such file or directory: 'no/such/x'",
    ),
    "a pool that isn't one": (words("up", "--workers", "moon"), "--workers: expected some of cpu, gpu, found moon"),
    "another database": (words("up", "--postgres", "mysql://h/d"), "--postgres: expected postgresql://.*found mysql"),
    "a port past the last": (
        words("up", "--postgres", "postgres://h:99999/d"),
        "--postgres: expected a port from 0 to 65535",
    ),
}

STORES: dict[str, tuple[Words, str]] = {
    "a password in it": (
        root("s3://key:word@bucket/x"),
        r"root: expected an address without .*s3://\*\*\*@bucket/x; put",
    ),
    "a password in a setting": (
        words("run", "RECIPE", "--runtime", "root=https://me:word@host/x"),
        r"found https://\*\*\*@host/x; put them",
    ),
    "a file": (root("recipe.yaml"), "store .*: expected a folder, or a place for one, found a file"),
    "no bucket": (root("s3://"), "store 's3://': expected a URL like s3://bucket/prefix, found no bucket"),
    "an unknown kind": (root("nowhere://a/b"), "store 'nowhere://a/b': expected a folder or an fsspec URL"),
    "a client that isn't there": (root("gs://a/b"), "store 'gs://a/b': expected a folder .*install gcsfs"),
    "below a file": (
        root("recipe.yaml/store", "run"),
        "store .*: expected a folder, or a place for one, found Not a dir",
    ),
    "a zero in it": (root("a\0b", "run"), r"store .*a\\x00b'?: expected a folder.*null byte"),
    "a name of 300 letters": (
        root("x" * 300, "run"),
        "store .*: expected a folder, or a place for one, found File name too long",
    ),
}

TABLES = {"recipe": RECIPES, "field": FIELDS, "option": OPTIONS, "store": STORES}
CASES = [pytest.param(*case, id=f"{name}: {text}") for name, table in TABLES.items() for text, case in table.items()]


@pytest.mark.parametrize(("given", "message"), CASES)
def test_what_is_wrong_is_said_on_one_line(cli: Cli, shared: Bench, given: Words, message: str) -> None:
    failed = cli(*given(shared))
    assert failed.code == 2, failed.err
    assert failed.out == ""
    assert len(failed.err.splitlines()) == 1, failed.err
    assert failed.err.startswith("error: ")
    assert re.search(message, failed.err), failed.err
    assert "word@" not in failed.err
    assert "pass@" not in failed.err


def test_what_the_table_changes_is_right_without_the_change(cli: Cli, shared: Bench) -> None:
    assert cli("plan", shared.recipe).code == 0


NAMES = ["[red]x[/red]", "[/]", "<script>alert(1)</script>", ":smile:", "a|b", "日本 语"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(name, name)
    table.add_row(name, name)
    print_result(table)
    assert capsys.readouterr().out.count(name) == 4


@pytest.mark.parametrize("name", NAMES)
def test_bars_take_names_as_they_are(name: str) -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=True, width=120)) as bars:
        for state in ("started", "failed", "computed"):
            bars._hear(Event("train", f"train {name}", state, message=name))  # type: ignore[arg-type]
    assert f"train {name}" in stream.getvalue()
