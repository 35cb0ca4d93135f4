"""`python -m tests.audit`: known vulnerabilities of the packages in constraints.txt, by pip-audit.

Ends with 1 where one is known. What the database can't be asked about isn't known: it says so, and ends with 0.
"""

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
SECONDS = 120


def verdict(out: str, err: str) -> tuple[int, list[str]]:
    """The exit code and what to say, for pip-audit's JSON and its words where there is none."""
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = err.strip().splitlines()[-1] if err.strip() else "it said nothing"
        return 0, [f"audit: nothing was audited, the database of vulnerabilities gave no answer ({reason[:200]})"]
    known = [
        f"{package['name']} {package['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'none'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    skipped = sum("skip_reason" in package for package in packages)
    asked = f"{len(packages) - skipped} of {len(packages)} packages were audited"
    if skipped == len(packages):
        return 0, ["audit: nothing was audited, the database of vulnerabilities knows none of the packages"]
    return int(bool(known)), [*known, f"audit: {asked}, {len(known)} known vulnerabilities"]


def main() -> int:
    """Asks, and prints the verdict."""
    words = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *words, "--format", "json", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        code, said = verdict(done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        code, said = verdict("", f"no answer within {SECONDS} s")
    print(*said, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
