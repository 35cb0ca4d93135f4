"""What a result was computed with: code, packages, machine. Recorded in manifests, never hashed."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("datasets", "numba", "numpy", "prefect", "safetensors", "tokenizers", "torch", "transformers")


def environment(device: str) -> dict[str, object]:
    """Code version and dirty flag, package versions, Python, platform and the device that was asked for."""
    return {**_constant(), "device": device}


@functools.cache
def _constant() -> dict[str, object]:
    return {
        "code": code_version(),
        "packages": {name: v for name in _PACKAGES if (v := package_version(name)) is not None},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_version() -> dict[str, object]:
    """The release, and where this is a git checkout its commit and whether anything differs from it."""
    here = Path(__file__).parents[2]
    version: dict[str, object] = {"version": package_version("llm-fuse")}
    if (here / ".git").exists() and (commit := _git(here, "rev-parse", "HEAD")) is not None:
        version |= {"commit": commit, "dirty": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}
    return version


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
