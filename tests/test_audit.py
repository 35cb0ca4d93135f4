"""The audit fails for what is known, and never for what nobody could be asked."""

import json

import pytest

from tests.audit import verdict

SOUND = {"name": "right", "version": "1.0", "vulns": []}
HOLED = {"name": "left", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
SKIPPED = {"name": "middle", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND, SOUND], 0, "2 of 2 packages were audited, 0 known"),
        ([SOUND, SKIPPED], 0, "1 of 2 packages were audited, 0 known"),
        ([SOUND, HOLED], 1, "left 1.0: PYSEC-1, fixed in 1.1"),
        ([SKIPPED, SKIPPED], 0, "nothing was audited"),
    ],
)
def test_only_a_known_vulnerability_fails(packages: list[object], code: int, said: str) -> None:
    found, words = verdict(json.dumps({"dependencies": packages, "fixes": []}), "Found something")
    assert found == code
    assert said in "\n".join(words)


@pytest.mark.parametrize("out", ["", "Traceback", "[]", "{}"])
def test_no_answer_is_said_and_is_no_failure(out: str) -> None:
    code, words = verdict(out, "Connecting ...\nConnectionError: no route")
    assert code == 0
    assert words == [
        "audit: nothing was audited, the database of vulnerabilities gave no answer (ConnectionError: no route)"
    ]
