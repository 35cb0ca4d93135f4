"""The text that every installation carries: Python code, English technical prose, C++.

Nothing is downloaded and nothing is imported; files are found through the standard library's folder and
the file lists of installed distributions, read as text, and cleaned until a domain is what its name says.
"""

import ast
import hashlib
import inspect
import os
import platform
import re
import sysconfig
import warnings
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Literal

Domain = Literal["python", "prose", "cpp"]

CPP_DISTRIBUTION = "torch"
_SKIPPED_FOLDERS = frozenset(
    # other people's code, tests, and tables of characters
    [
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "testing",
        "idle_test",
        "encodings",
        "ensurepip",
    ]
)
_MANUAL = "python/pydoc_data/topics.py"  # the chapters of the language reference that `help()` shows
_LICENCE = re.compile(r"copyright|licen[sc]e|spdx|all rights reserved", re.IGNORECASE)
_COMMENT_LINE = r"(?://|#(?!\s*(?:include|pragma|if|define|undef|error)))[^\n]*"
_COMMENT_AT_START = re.compile(rf"\s*(?:/\*.*?\*/|{_COMMENT_LINE}(?:\n[ \t]*{_COMMENT_LINE})*)", re.DOTALL)
_DOCUMENTABLE = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "cases", "handlers", "orelse", "finalbody")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_SYMBOL = re.compile(r"[^\w\s.,'`-]|[\d_]")
_FUNCTION_WORD = re.compile(
    r"\b(?:a|all|also|an|and|any|are|as|at|be|been|but|by|can|do|does|each|for|from|has|have|if|in|into|is|it|its|may|more|"
    r"must|no|not|of|on|one|only|or|other|over|same|should|so|such|than|that|the|their|them|then|there|these|they|this|to|"
    r"two|until|use|used|was|when|where|which|while|will|with|without|you|your)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SourceFile:
    """A file to read, under a name that is the same on every machine."""

    name: str
    path: Path


@dataclass(frozen=True)
class InstalledText:
    """A document: what one file holds of one domain. `source` is the file's name, never an absolute path."""

    text: str
    domain: Domain
    source: str

    @property
    def id(self) -> str:
        """16 hex digits of the text's SHA-256: equal texts have equal ids wherever they were found."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def standard_library_files() -> list[SourceFile]:
    """The standard library's modules by name, without tests and without what the build left about this machine."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, children, files in os.walk(root):
        children[:] = [c for c in children if c not in _SKIPPED_FOLDERS and not c.startswith("config-")]
        for file in files:
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                path = Path(folder, file)
                found.append(SourceFile(f"python/{path.relative_to(root).as_posix()}", path))
    return sorted(found, key=lambda f: f.name)


def distribution_files(name: str, suffixes: tuple[str, ...], under: str = "") -> list[SourceFile]:
    """The files of an installed distribution whose name ends in one of `suffixes` and starts with `under`, by name.

    Raises `ValueError` when the distribution isn't installed.
    """
    files = _distribution(name).files or []
    return sorted(
        (
            SourceFile(f.as_posix(), Path(str(f.locate())))
            for f in files
            if f.suffix in suffixes and f.as_posix().startswith(under) and not _SKIPPED_FOLDERS & set(f.parts)
        ),
        key=lambda f: f.name,
    )


def describe_installation(distributions: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of the distributions, and a digest of the standard library's file names and sizes."""
    listing = "\n".join(f"{f.name} {f.path.stat().st_size}" for f in standard_library_files())
    return {
        "python": platform.python_version(),
        "standard_library": hashlib.sha256(listing.encode()).hexdigest()[:16],
        **{name: _distribution(name).version for name in sorted({*distributions, CPP_DISTRIBUTION})},
    }


def installed_files(distributions: tuple[str, ...]) -> list[SourceFile]:
    """All files that hold documents: Python of the standard library and the distributions, and torch's C++ headers."""
    modules = chain(standard_library_files(), *(distribution_files(name, (".py",)) for name in distributions))
    return [*modules, *distribution_files(CPP_DISTRIBUTION, (".h", ".hpp", ".cuh"), under="torch/include/")]


def read_documents(file: SourceFile) -> list[InstalledText]:
    """The documents of one file: code and prose of a module, or a header; none for what a program wrote."""
    try:
        source = file.path.read_text(encoding="utf-8")
        if file.path.suffix != ".py":
            text = "" if "@generated" in source[:2000] else without_licence(_without_guard(source))
            return [InstalledText(text, "cpp", file.name)]
        tree = _parse(source)
    except (UnicodeDecodeError, SyntaxError):  # a few modules are data for tests of just that
        return []
    if file.name == _MANUAL:
        chapters = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        return [InstalledText(keep_prose(chapter), "prose", file.name) for chapter in chapters]
    return [
        InstalledText(code_without_docstrings(source, tree), "python", file.name),
        InstalledText(prose_of_docstrings(tree), "prose", file.name),
    ]


def code_without_docstrings(source: str, tree: ast.Module) -> str:
    """The module's source without docstrings and licence; a body that was only a docstring becomes `pass`.

    `tree` is the parsed `source`; comments stay.
    """
    lines: list[str | None] = list(source.split("\n"))
    for node in _documented(tree):
        docstring = node.body[0]
        first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
        before = (lines[first] or "").encode()[: docstring.col_offset]
        after = (lines[last] or "").encode()[docstring.end_col_offset :].strip()
        if before.strip() or (after and not after.startswith(b"#")):
            continue  # shares its line with other statements
        lines[first : last + 1] = [None] * (last + 1 - first)
        if len(node.body) == 1:
            lines[first] = before.decode() + "pass"
    return without_licence("\n".join(line for line in lines if line is not None))


def prose_of_docstrings(tree: ast.Module) -> str:
    """The English paragraphs of a module's docstrings, in the order of the file; empty for none."""
    kept = (keep_prose(ast.get_docstring(node, clean=True) or "") for node in _documented(tree))
    return "\n\n".join(text for text in kept if text)


def keep_prose(text: str) -> str:
    """The paragraphs that are English sentences, flush left; code, tables, listings and headings are left out."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    flush = ("\n".join(line.strip() for line in p.strip().split("\n")) for p in paragraphs)
    return "\n\n".join(paragraph for paragraph in flush if is_prose(paragraph))


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads like English: eight words, a quarter of them function words, few symbols."""
    words = len(_WORD.findall(paragraph))
    if words < 8 or ">>>" in paragraph:
        return False
    small = len(_FUNCTION_WORD.findall(paragraph))
    symbols = len(_SYMBOL.findall(paragraph))
    return small >= 0.25 * words and symbols <= 0.05 * len(paragraph)


def without_licence(source: str) -> str:
    """The source without the comments at its top that speak of copyright and licences; other comments stay."""
    position, kept = 0, ""
    while match := _COMMENT_AT_START.match(source, position):
        if not _LICENCE.search(match[0]):
            kept += match[0]
        position = match.end()
    return (kept + source[position:]).strip() + "\n"


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():  # other people's escapes are no concern of whoever collects their words
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            f"texts are read from the distribution {name!r}, found it not installed; install it or leave it out"
        ) from error


def _without_guard(source: str) -> str:
    """A header without the condition that torch's wheel wraps around each of its headers."""
    guard, end = "#if !defined(TORCH_STABLE_ONLY) && !defined(TORCH_TARGET_VERSION)\n", "\n#else\n#error"
    return source.removeprefix(guard).rpartition(end)[0] if source.startswith(guard) and end in source else source


def _documented(tree: ast.Module) -> list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The nodes of the tree that carry a docstring, in the order of the file."""
    found, waiting = [], list[ast.AST]([tree])
    while waiting:  # statements only: walking every expression as well takes many times as long
        node = waiting.pop()
        waiting += reversed([child for block in _BLOCKS for child in getattr(node, block, ())])
        if isinstance(node, _DOCUMENTABLE) and ast.get_docstring(node, clean=False) is not None:
            found.append(node)
    return found
