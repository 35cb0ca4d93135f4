"""Canaries: what must stay secret is planted wherever it may lie, and looked for in everything a run leaves or says."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import EndpointConnectionError
from prefect import flow, get_client
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from pydantic import BaseModel

from flows.cli.exits import report_error
from flows.extract import extract_source
from flows.recipe import load_recipe
from tasks.artifacts import ModelRef, Runtime
from tasks.running.progress import Event, listening
from tasks.secrets import hiding_secrets, redact, redact_error
from tasks.step import Output, step
from tasks.storage.store import Store
from tests.flows.conftest import Bench
from tests.tasks.conftest import BUCKET, s3_endpoint

__all__ = ["s3_endpoint"]  # a fixture

CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canarySecretAccessKey1",
    "AWS_SESSION_TOKEN": "canarySessionToken2",
    "HF_TOKEN": "hf_canaryHubToken3canary",
    "WANDB_API_KEY": "canaryTrackerKey4",
    "LLM_FUSE_POSTGRES": "postgresql://me:canaryDatabase6@127.0.0.1/x",
}
PASSWORD = "canaryUrlPassword7"
ADDRESS = f"http://me:{PASSWORD}@127.0.0.1:9"


@pytest.fixture
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def leaks(text: str) -> list[str]:
    return [name for name, value in {**CANARIES, "PASSWORD": PASSWORD}.items() if value in text]


def left_in(folder: Path) -> list[str]:
    """Where a canary lies in any file's bytes or name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [f"{path}: {found}" for path in files if (found := leaks(f"{path} {path.read_bytes().decode('latin-1')}"))]


# ---- errors ---------------------------------------------------------------------------------------------------


class Odd(Exception):
    """Its words don't come from its arguments."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def __str__(self) -> str:
        return f"no answer from {self.url}"


class Settings(BaseModel):
    port: int


def refused_settings() -> Exception:
    try:
        Settings.model_validate({"port": ADDRESS})
    except ValueError as error:
        return error
    raise AssertionError("unreachable")


ERRORS: list[Exception] = [
    ConnectionError(f"can't reach {ADDRESS}/x"),
    OSError(5, "input/output error", f"{ADDRESS}/x"),
    EndpointConnectionError(endpoint_url=ADDRESS),
    Odd(ADDRESS),
    ValueError(*[CANARIES["AWS_SECRET_ACCESS_KEY"]] * 2),
    RuntimeError(f"https://bucket/x?X-Amz-Signature={PASSWORD}&a=b"),
]


@pytest.mark.usefixtures("_planted")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_keeps_its_type_and_loses_its_secrets(error: Exception) -> None:
    kind = type(error)
    redact_error(error)
    assert isinstance(error, kind)
    assert "***" in str(error)
    assert leaks(f"{error} {error!r} {error.args}") == []


@pytest.mark.usefixtures("_planted")
@pytest.mark.parametrize("make", [lambda: ConnectionError(ADDRESS), refused_settings], ids=["plain", "of Rust"])
def test_what_an_error_came_from_loses_its_secrets_too(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("it failed")
    error.__cause__ = ValueError("halfway")
    error.__cause__.__context__ = make()
    error.add_note(f"while reading {ADDRESS}")
    with pytest.raises(RuntimeError, match="it failed") as caught, hiding_secrets():
        raise error
    logging.getLogger("test").debug("", exc_info=caught.value)
    report_error(caught.value, verbose=True)
    shown = capsys.readouterr().err
    assert "halfway" in shown
    assert leaks(shown) == []


@pytest.mark.usefixtures("_planted")
def test_the_command_line_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (refused_settings(), ConnectionError(ADDRESS), TypeError(CANARIES["HF_TOKEN"])):
        report_error(error, verbose=True)
    assert leaks(capsys.readouterr().err) == []


def test_words_without_secrets_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")  # a word of every second sentence is no secret
    text = "a test of s3://bucket/x@y, https://host/?a=b and me@host: 3 of 4"
    assert redact(text) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_proxy", "localhost"),
        ("NO_PROXY", "me:localhost@localhost"),
        ("https_proxy", "http://localhost"),
        ("POSTGRES_USER", "localhost"),
        ("POSTGRES_DB", "localhost"),
        ("POSTGRES_HOST", "localhost"),
        ("POSTGRES_PASSWORD_FILE", "localhost"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "localhost"),
        ("LLM_FUSE_POSTGRES", "postgresql://localhost/x"),
        ("HTTP_PROXY", "me:secret@localhost"),
    ],
)
def test_a_variable_hides_no_word_but_its_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    text = "no answer from http://localhost:4200/api"
    assert redact(text) == text


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HTTPS_PROXY", "http://me:opensesame@localhost:3128", "opensesame"),
        ("http_proxy", "me:opensesame@localhost:3128", "opensesame"),
        ("ALL_PROXY", "socks5://opensesame@localhost", "opensesame"),
        ("LLM_FUSE_POSTGRES", "postgresql://me:open%2Fsesame@localhost/x", "open/sesame"),
        ("LLM_FUSE_POSTGRES", "postgresql://me:open/sesame@localhost/x", "open/sesame"),
        ("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://me:opensesame@db/x", "opensesame"),
        ("POSTGRES_PASSWORD", "opensesame", "opensesame"),
    ],
)
def test_a_variables_password_is_hidden_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: str
) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"localhost refused {secret} of {value}").startswith("localhost refused *** of ")
    assert secret not in redact(value)


# ---- Prefect --------------------------------------------------------------------------------------------------


@step(version=1, retries=0)
def leak(model: str, *, runtime: Runtime, out: Output) -> ModelRef:
    """Fails with everything that an error can tell."""
    try:
        raise refused_settings()
    except ValueError as error:
        raise ConnectionError(f"{ADDRESS}: {' '.join(CANARIES.values())}") from error


@flow(name="leaky")
@hiding_secrets()
def leaky(runtime: Runtime, here: bool) -> None:
    if here:
        raise ConnectionError(f"{ADDRESS}: {' '.join(CANARIES.values())}") from refused_settings()
    leak.submit("x", runtime=runtime).result()


@pytest.fixture(scope="module")
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120), temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True}):
        yield


def recorded() -> str:
    """All that the server knows of flow runs, task runs, their states and parameters, and the logs."""
    APILogWorker.instance().drain()
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        answers = [run.model_dump_json() for run in runs]
        answers += [run.model_dump_json() for run in client.read_task_runs()]
        for run in runs:
            answers += [state.model_dump_json() for state in client.read_flow_run_states(run.id)]
        logs = client.request("POST", "/logs/filter", json={"limit": 200}).text
    assert "Traceback" in logs
    assert "***" in logs
    return "\n".join([*answers, logs])


@pytest.mark.usefixtures("_planted", "_server")
def test_prefect_records_no_secret_of_a_failed_run(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = Runtime(root=str(tmp_path / "store"), device="cpu")
    told: list[Event] = []
    with listening(told.append):
        for here in (False, True):
            assert leaky(runtime, here, return_state=True).is_failed()
    recipe = load_recipe(str(bench.recipe), ["corpus.max_documents=2"])
    extract_source(recipe, "teacher", runtime)
    everything = recorded()
    assert leaks(everything) == []
    assert leaks("".join(event.message for event in told)) == []
    assert "***" in told[-1].message
    shown = capfd.readouterr()
    assert leaks(shown.out + shown.err) == []
    assert len(list((tmp_path / "store").rglob("MANIFEST.json"))) == 3
    assert left_in(tmp_path / "store") == []


# ---- a whole run ----------------------------------------------------------------------------------------------

_WORDS = ["-c", "import sys; from flows.cli import main; sys.exit(main())"]


def run(bench: Bench, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, whose Prefect keeps its records and logs below `home`."""
    environment = {
        **os.environ, **CANARIES, **variables, "PREFECT_HOME": str(home / "prefect"), "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"), "PREFECT_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": str(Path.cwd()),
    }  # fmt: skip
    command = [sys.executable, *_WORDS, "--verbose", *words]
    return subprocess.run(command, cwd=bench.folder, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_on_s3_that_fails_and_then_succeeds_leaves_and_says_no_secret(
    bench: Bench, tmp_path: Path, s3_endpoint: str
) -> None:
    home, copy, root = tmp_path / "home", tmp_path / "objects", f"s3://{BUCKET}/secrets"
    home.mkdir()
    recipe = yaml.safe_load(bench.recipe.read_text())
    recipe["evaluation"]["corpus"]["documents"][0]["paths"] = [f"{bench.texts}/later-*.txt"]
    bench.recipe.write_text(yaml.safe_dump(recipe))
    words = ("run", str(bench.recipe), "--root", root, "--device", "cpu")
    failed = run(bench, home, *words, AWS_ENDPOINT_URL=s3_endpoint)
    (bench.texts / "later-0.txt").write_text("some text that comes later")
    done = run(bench, home, *words, AWS_ENDPOINT_URL=s3_endpoint)
    lost = run(bench, home, "plan", str(bench.recipe), "--root", root, AWS_ENDPOINT_URL=ADDRESS)
    assert [failed.returncode, done.returncode, lost.returncode] == [2, 0, 1]
    store = Store(root, cache_dir=str(tmp_path / "cache"))
    store.fs.get(store.base, str(copy), recursive=True)
    assert len(list(copy.rglob("MANIFEST.json"))) > 10
    assert [leaks(process.stdout + process.stderr) for process in (failed, done, lost)] == [[], [], []]
    assert left_in(copy) == []
    assert list((home / "prefect").rglob("*.db"))
    assert left_in(home) == []
