"""Which failure ends a command with which code."""

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from flows.cli.exits import BUG, FAILED, USAGE, exit_code, report_error
from tasks.artifacts import StoreError
from tasks.training.failures import TrainingFailed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a bad recipe"), USAGE),
        (StoreError("no such store"), USAGE),
        (PermissionError(13, "denied"), USAGE),
        (NoCredentialsError(), USAGE),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), FAILED),
        (ConnectionResetError(104, "reset"), FAILED),
        (TrainingFailed("killed for memory"), FAILED),
        (KeyError("bug"), BUG),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_a_failure_has_its_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_a_store_without_credentials_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(NoCredentialsError(), verbose=False) == USAGE
    assert capsys.readouterr().err == "error: Unable to locate credentials\n"
