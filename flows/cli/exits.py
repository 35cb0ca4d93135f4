"""Exit codes, and which failure gets which: a user reads one line, a bug keeps its traceback."""

import sys
import traceback

from pydantic import ValidationError

from tasks.artifacts import StoreError
from tasks.running.transient import is_transient
from tasks.secrets import redact

OK = 0
FAILED = 1
"""The run failed, or a check found something: shards, a network that is down, damaged files."""
USAGE = 2
"""What was asked for can't be done: a recipe, a model, a text, a store. The message says what to change."""
BUG = 70
INTERRUPTED = 130
_LONGEST = 2000
"""Letters of a message: a path may be as long as an attacker likes."""


def exit_code(error: BaseException) -> int:
    """The code that a failure ends the command with."""
    causes = getattr(error, "causes", ())
    if causes:  # shards: as bad as the worst reason among them
        return USAGE if all(exit_code(cause) == USAGE for cause in causes) else FAILED
    if is_transient(error):
        return FAILED
    if isinstance(error, ValueError | StoreError | OSError) or _is_from_the_stores_client(error):
        return USAGE
    return FAILED if type(error).__name__ in _FAILED_RUNS else BUG


def _is_from_the_stores_client(error: BaseException) -> bool:
    """No credentials, say. Commands that compute probe the store first; those that read meet the client's errors."""
    return type(error).__module__.split(".")[0] in ("aiobotocore", "botocore")


# Runs and trainings that ended badly without a bug, by name: importing what raises them takes seconds.
_FAILED_RUNS = {
    "CancelledRun",
    "CrashedRun",
    "FailedRun",
    "PausedRun",
    "ShardsFailed",
    "TableIncomplete",
    "TrainingFailed",
    "UnfinishedRun",
}


def report_error(error: BaseException, *, verbose: bool) -> int:
    """Writes the failure to stderr, as one line unless it is a bug or `verbose`; its exit code."""
    code = exit_code(error)
    if verbose or code == BUG:
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    if code == BUG:
        print("error: this is a bug of llm-fuse; please report it with the lines above", file=sys.stderr)
    else:
        print(f"error: {_sentence(error)}", file=sys.stderr)
    return code


def _sentence(error: BaseException) -> str:
    """The error's words on one line, of a bounded length, without secrets and what a terminal would obey."""
    words = str(error)
    if isinstance(error, ValidationError):
        from flows.recipe_files import explain_errors

        words = explain_errors(error, None)
    line = " ".join(redact(words).split()) or type(error).__name__
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
