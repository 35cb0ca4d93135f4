"""Where documents come from: the quickstart's texts, data sets of the hub, files; one after the other or mixed."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fusion_core.spec import LATER, PINNED, Name, Spec
from tasks.artifacts import TextsRef
from tasks.corpora.conversations import Tool, read_conversation, read_tools
from tasks.corpora.document_files import FileFormat, content_mark, expand_paths, read_rows, read_text
from tasks.corpora.documents import Document, text_id
from tasks.models.hub import check_repo_id, check_revision, resolve_commit
from tasks.secrets import Address
from tasks.storage.store import Store

Placed = tuple[str, Document]
"""Where a document was found, for messages, and the document."""

ToolsField = Annotated[
    str | None,
    AfterValidator(lambda name: name or None),
    LATER,
    Field(
        title="Tools column",
        description="The column that holds the tools of a conversation, which chat templates show before it: a list of "
        "JSON schemas of functions, or one written as JSON; null, or absent in JSONL: no tools. Empty: none is read.",
    ),
]


class Installed(Spec):
    """The quickstart's texts: what this Python installation carries."""

    kind: Literal["installed"] = "installed"
    split: Literal["sources", "target", "fusion", "validation", "test"] = Field(
        "fusion", title="Split", description="Which part; no file is in two of them."
    )
    domains: tuple[str, ...] = Field((), title="Domains", description="Only these; empty for all.")
    max_bytes_per_domain: int | None = Field(
        None, gt=0, title="Bytes per domain", description="At most; empty for all."
    )


class HubDataset(Spec):
    """A data set of the Hugging Face hub, streamed."""

    kind: Literal["hub_dataset"] = "hub_dataset"
    id: Annotated[str, AfterValidator(check_repo_id)] = Field(title="Repository", description="owner/name on the hub.")
    revision: Annotated[str, AfterValidator(check_revision), PINNED] = Field(
        "main", title="Revision", description="Branch, tag or commit; resolved to a commit at launch."
    )
    config: str | None = Field(
        None, title="Configuration", description="The data set's configuration; empty for its only one."
    )
    split: str = Field("train", title="Split", description="Which part of the data set.")
    text_field: str = Field(
        "text",
        title="Text column",
        description="The column that holds the text, or a conversation: a list of messages with role and content.",
    )
    tools_field: ToolsField = None
    domain: Name = Field("text", title="Domain", description="The name under which evaluation reports these documents.")


class Files(Spec):
    """Files by path or glob, on disk or any fsspec URL: a document per text file, or per row of Parquet and JSONL."""

    kind: Literal["files"] = "files"
    paths: Annotated[tuple[Address, ...], PINNED] = Field(
        title="Paths",
        description="Files or globs: `texts/*.txt`, `s3://bucket/*.jsonl.zst`; .gz, .bz2, .xz, .zst are read.",
        min_length=1,
    )
    format: FileFormat = Field(
        "text", title="Format", description="A document per file of text, or per row of the others."
    )
    text_field: str = Field(
        "text",
        title="Text column",
        description="In JSONL and Parquet, the column that holds the text, or a conversation: a list of messages with "
        "role and content, of which models are compared on what the assistant says.",
    )
    tools_field: ToolsField = None
    domain: Name = Field("text", title="Domain", description="The name under which evaluation reports these documents.")


DocumentSource = Annotated[Installed | HubDataset | Files, Field(discriminator="kind")]


class Mixture(Spec):
    """Documents of all entries in an order drawn at random, until one entry has no more."""

    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        title="Weights", min_length=1, description="The share of the text that each entry has, in proportion to these."
    )
    seed: int = Field(0, ge=0, title="Seed", description="Another one draws another order.")


def pin_sources(sources: Sequence[DocumentSource], store: Store) -> dict[str, object]:
    """What the sources are today, by number: marks of the files' contents, commits of data sets."""
    pins: dict[str, object] = {}
    for number, source in enumerate(sources):
        if isinstance(source, Files):
            pins[str(number)] = _mark_files(source)
        elif isinstance(source, HubDataset):
            pins[str(number)] = resolve_commit("dataset", source.id, source.revision, store)
    return pins


def read_sources(
    sources: Sequence[DocumentSource], texts: Iterable[TextsRef], store: Store, pins: Mapping[str, object]
) -> list[Iterator[Placed]]:
    """The documents of each source, read as they are asked for.

    texts: the collected texts for the `Installed` ones, in their order. pins: as `pin_sources` found them.
    """
    collected = iter(texts)
    found = []
    for number, source in enumerate(sources):
        match source:
            case Installed():
                found.append(_read_installed(source, store, next(collected)))
            case HubDataset():
                found.append(_read_hub(source, str(pins[str(number)])))
            case Files():
                found.append(_read_files(source))
    return found


@contextlib.contextmanager
def unchanged_files(sources: Sequence[DocumentSource], pins: Mapping[str, object]) -> Iterator[None]:
    """A block that reads the sources, at whose end their files are still what `pin_sources` found, read anew.

    Raises `OSError`, so that the step is tried again with today's files, where one was rewritten, added or removed;
    a file that is being rewritten may have failed the block as bad text before.
    """
    try:
        yield
    except ValueError:
        _check_pins(sources, pins)
        raise
    _check_pins(sources, pins)


def mix(sources: Sequence[Iterator[Placed]], mixture: Mixture) -> Iterator[Placed]:
    """Documents of all sources, each drawn so often that its share of the bytes comes to its share of the weights.

    The chance of a source is its weight over the mean length of its documents so far; it ends where a source has
    nothing left that was drawn. The same seed gives the same order.
    """
    draw = random.Random(mixture.seed)
    ahead = [next(source, None) for source in sources]
    sizes = [0 if placed is None else len(placed[1].text.encode()) for placed in ahead]
    counts = [1] * len(ahead)
    while True:
        rates = [weight * n / max(size, 1) for weight, n, size in zip(mixture.weights, counts, sizes, strict=True)]
        (chosen,) = draw.choices(range(len(ahead)), rates)
        placed = ahead[chosen]
        if placed is None:
            return
        yield placed
        ahead[chosen] = following = next(sources[chosen], None)
        if following is not None:
            counts[chosen] += 1
            sizes[chosen] += len(following[1].text.encode())


def _check_pins(sources: Sequence[DocumentSource], pins: Mapping[str, object]) -> None:
    for number, source in enumerate(sources):
        if not isinstance(source, Files):
            continue
        try:
            is_same = _mark_files(source, anew=True) == pins[str(number)]
        except ValueError:  # what was there at launch is gone
            is_same = False
        if not is_same:
            raise OSError(
                f"{', '.join(source.paths)}: expected the files that were there when the step began, found some "
                "rewritten, added or removed; run again when nothing writes to them"
            )


def _mark_files(source: Files, *, anew: bool = False) -> list[str]:
    return [content_mark(path, anew=anew) for path in expand_paths(source.paths)]


def _read_installed(source: Installed, store: Store, texts: TextsRef) -> Iterator[Placed]:
    import pyarrow.parquet as pq

    name = f"{source.split}.parquet"
    used: dict[str, int] = {}
    for row in pq.read_table(store.fetch(texts, [name]) / name).to_pylist():
        domain = row["domain"]
        if source.domains and domain not in source.domains:
            continue
        length = len(row["text"].encode())
        if source.max_bytes_per_domain is not None and used.get(domain, 0) + length > source.max_bytes_per_domain:
            continue
        used[domain] = used.get(domain, 0) + length
        yield row["source"], Document(row["id"], row["text"], domain)


def _read_hub(source: HubDataset, commit: str) -> Iterator[Placed]:
    from datasets import load_dataset

    rows = load_dataset(source.id, source.config, split=source.split, revision=commit, streaming=True)
    yield from _rows(f"{source.id} ({source.split})", rows, source, padded=True)


def _read_files(source: Files) -> Iterator[Placed]:
    for path in expand_paths(source.paths):
        yield from _read_file(path, source)


def _read_file(path: str, source: Files) -> Iterator[Placed]:
    if source.format == "text":
        text = read_text(path)
        yield path, Document(text_id(text), text, source.domain)
    else:
        columns = tuple(filter(None, (source.text_field, source.tools_field)))
        rows = read_rows(path, source.format, columns)
        yield from _rows(path, rows, source, padded=source.format == "parquet")


def _rows(
    where: str, rows: Iterable[dict[str, object]], source: HubDataset | Files, *, padded: bool
) -> Iterator[Placed]:
    for number, row in enumerate(rows):
        place = f"{where}, row {number}"
        value = row.get(source.text_field)
        if not isinstance(value, str | list):
            found = f"columns {', '.join(row)}" if source.text_field not in row else type(value).__name__
            raise ValueError(f"{place}: expected text in column {source.text_field!r}, found {found}; set text_field")
        tools = _tools(place, row, source.tools_field, padded)
        with _read_from(place, source.text_field):
            if isinstance(value, str):
                document = Document(text_id(value), value, source.domain)
            else:
                document = read_conversation(value, source.domain, tools, padded=padded)
        yield place, document


def _tools(place: str, row: dict[str, object], column: str | None, padded: bool) -> list[Tool]:
    if column is None:
        return []
    if padded and column not in row:  # a table's rows have all its columns, those of JSONL what they need
        raise ValueError(
            f"{place}: expected tools in column {column!r}, found columns {', '.join(row)}; set tools_field"
        )
    with _read_from(place, column):
        return read_tools(row.get(column), padded=padded)


@contextlib.contextmanager
def _read_from(place: str, column: str) -> Iterator[None]:
    """A block that reads a column of a row, which its errors name."""
    try:
        yield
    except UnicodeEncodeError as error:  # JSON can write what UTF-8 can't
        raise ValueError(
            f"{place}: expected text that UTF-8 can hold, found a lone surrogate "
            f"U+{ord(error.object[error.start]):04X} at character {error.start} of {column!r}; mend or remove the row"
        ) from error
    except ValueError as error:
        raise ValueError(f"{place}, column {column!r}: {error}") from error
