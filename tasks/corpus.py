"""The corpus: documents from anywhere, cut into pieces of bounded size, grouped into shards that every model reads.

Cutting looks at the text alone, never at a model, so adding a source re-reads nothing. The pieces of a
document, joined, are the document byte for byte. A shard's identity is the digest of its pieces.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fusion_core.spec import Spec
from tasks.artifacts import CorpusRef, Runtime, ShardRef, TextsRef
from tasks.corpora.conversations import all_words, exchange
from tasks.corpora.document_sources import (
    DocumentSource,
    Files,
    HubDataset,
    Installed,
    Mixture,
    Placed,
    mix,
    pin_sources,
    read_sources,
    unchanged_files,
)
from tasks.corpora.documents import SHARDS, Document, digest_of, read_documents, split_text, write_documents
from tasks.corpora.overlap import Decontamination, ExactDuplicates, HeldOutText, NearDuplicates, SeenTexts
from tasks.corpora.sharding import cut_by_content, cut_by_size
from tasks.models.hub import remember_commit
from tasks.step import Output, step
from tasks.storage.store import Store, open_store

__all__ = ["CorpusSpec", "DocumentSource", "Files", "HubDataset", "Installed", "Mixture", "build_corpus"]

LEFT_OUT = "left_out.json"
_NAMED_IN_FACTS = 100


class CorpusSpec(Spec):
    """Which documents, and how they are cut."""

    documents: tuple[DocumentSource, ...] = Field(
        title="Documents", min_length=1, description="Where the text comes from; one after the other."
    )
    mixture: Mixture | None = Field(
        None, title="Mixture", description="Of the entries by weight, in random order; empty: all of each, in order."
    )
    duplicates: Annotated[ExactDuplicates | NearDuplicates, Field(discriminator="kind")] | None = Field(
        None, title="Duplicates", description="Which documents are left out as repeated; empty: none."
    )
    decontamination: Decontamination | None = Field(
        None,
        title="Decontamination",
        description="Leave out what the evaluation's text, and the text below, has too; empty: nothing.",
    )
    max_bytes: int = Field(
        2048,
        ge=16,
        title="Bytes per piece",
        description="Longer documents are cut, longer conversations left out; must fit every model's window.",
    )
    shard_bytes: int = Field(
        4_000_000, gt=0, title="Bytes per shard", description="A shard is the unit of caching and retrying."
    )
    sharding: Literal["by_content", "by_size"] = Field(
        "by_content",
        title="Where shards end",
        description="By content: half to twice the size, and what is added to the corpus later leaves other shards as "
        "they are. By size: filled one after the other.",
    )
    max_documents: int | None = Field(
        None, gt=0, title="Documents at most", description="Only the first ones; empty for all."
    )
    short_documents: Literal["refuse", "drop"] = Field(
        "refuse",
        title="Documents under two characters",
        description="They predict nothing: an error, or left out and counted.",
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.mixture is not None and len(self.mixture.weights) != len(self.documents):
            raise ValueError(
                f"expected a weight per entry of documents, {len(self.documents)}, found "
                f"{len(self.mixture.weights)}; set mixture.weights"
            )
        return self


def pin_documents(
    spec: CorpusSpec, texts: list[TextsRef], held_out: Sequence[ShardRef], *, runtime: Runtime
) -> dict[str, object]:
    """What the documents are today: digests of the files' contents (an ETag on remote stores), commits of data sets."""
    store = open_store(runtime)
    pins = pin_sources(spec.documents, store)
    against = _against(spec)
    return pins | ({"against": pin_sources(against, store)} if against else {})


@step(version=3, pin=pin_documents)
def build_corpus(
    spec: CorpusSpec, texts: list[TextsRef], held_out: Sequence[ShardRef] = (), *, runtime: Runtime, out: Output
) -> CorpusRef:
    """The corpus as Parquet shards; `texts` holds the collected texts for its `installed` entries, in their order.

    held_out: what `spec.decontamination` keeps out of the corpus. What is left out is listed in `left_out.json`.
    """
    if spec.decontamination is not None and not held_out and not spec.decontamination.against:
        raise ValueError(
            "corpus.decontamination: expected held-out text to compare with, found none; add an evaluation to the "
            "recipe, or name text in decontamination.against (a corpus outside a recipe's own has no evaluation)"
        )
    store = open_store(runtime)
    pins: Mapping[str, Any] = out.pins  # Any: as `pin_documents` left it
    with unchanged_files(spec.documents, pins), unchanged_files(_against(spec), pins.get("against", {})):
        sources = read_sources(spec.documents, texts, store, pins)
        documents = chain.from_iterable(sources) if spec.mixture is None else mix(sources, spec.mixture)
        sieve = _Sieve(spec, _held_out_texts(spec, held_out, store, pins))
        marks, counts = _write_shards(spec, sieve.keep(documents), out)
        if not marks:
            raise ValueError(
                "corpus.documents: expected at least one document with text, found none; check paths, split, domains "
                f"and why {len(sieve.left_out)} documents were left out"
            )
    for number, source in enumerate(spec.documents):
        if isinstance(source, HubDataset):
            remember_commit("dataset", source.id, source.revision, str(pins[str(number)]), store)
    (out.dir / SHARDS).write_text(json.dumps(marks))
    (out.dir / LEFT_OUT).write_text(json.dumps(sieve.left_out, indent=1))
    out.facts |= {"documents": sieve.kept, **counts, **sieve.facts()}
    return out.ref(CorpusRef, num_shards=len(marks))


def _write_shards(
    spec: CorpusSpec, documents: Iterable[Document], out: Output
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """The shards' marks in order and, for the manifest, how much is in them."""
    cut = cut_by_content if spec.sharding == "by_content" else cut_by_size
    marks, domains, size = list[dict[str, object]](), dict[str, int](), 0
    for index, pieces in enumerate(cut(_pieces(documents, spec.max_bytes), spec.shard_bytes)):
        marks.append({"digest": digest_of(pieces), "pieces": len(pieces)})
        write_documents(out.dir, index, pieces)
        for piece in pieces:
            size += len(piece.text.encode())
            domains[piece.domain] = domains.get(piece.domain, 0) + 1
    counts = {"pieces": sum(domains.values()), "bytes": size, "shards": len(marks), "pieces_per_domain": domains}
    return marks, counts


class _Sieve:
    """Which documents are kept: those long enough, not repeated and not held out, up to the largest number."""

    def __init__(self, spec: CorpusSpec, held_out: Iterable[str]) -> None:
        self.kept = 0
        self.left_out: list[dict[str, object]] = []
        self._spec = spec
        self._seen = SeenTexts(spec.duplicates) if spec.duplicates else None
        self._held_out = HeldOutText(held_out, spec.decontamination) if spec.decontamination else None

    def keep(self, documents: Iterable[Placed]) -> Iterator[Document]:
        """The documents that are kept, in order; `left_out` says of each other one where it was and why."""
        for where, document in documents:
            if self.kept == self._spec.max_documents:
                return
            if reason := self._reason_to_leave(where, document):
                self.left_out.append({"id": document.id, "reason": reason, "where": where})
                continue
            self.kept += 1
            yield document

    def facts(self) -> dict[str, object]:
        """How many were left out for which reason, the ids of the first that held-out text had.

        held_out_without_ngrams: how many held-out texts were looked for as a whole only, being so short.
        """
        reasons = [entry["reason"] for entry in self.left_out]
        held_out = [entry["id"] for entry in self.left_out if entry["reason"] == "held out"]
        return {
            "dropped": reasons.count("short"),
            "too_long": reasons.count("too long"),
            "duplicates": reasons.count("duplicate"),
            "held_out": len(held_out),
            "held_out_ids": held_out[:_NAMED_IN_FACTS],
            "held_out_without_ngrams": 0 if self._held_out is None else self._held_out.without_ngrams,
        }

    def _reason_to_leave(self, where: str, document: Document) -> str | None:
        if len(document.text) < 2:
            if self._spec.short_documents == "refuse":
                raise ValueError(
                    f"{where}: expected a document of two characters or more, found {len(document.text)}; "
                    "remove it or set corpus.short_documents to drop"
                )
            return "short"
        if document.messages and document.num_bytes > self._spec.max_bytes:
            return "too long"
        if self._held_out is not None:
            said = {document.text, exchange(document), all_words(document)}
            if any(self._held_out.contains(words) for words in said):
                return "held out"
        if self._seen is None:
            return None
        is_near = isinstance(self._spec.duplicates, NearDuplicates)
        compared = exchange(document) if is_near else document.messages or document.text
        return "duplicate" if self._seen.has(compared) else None


def _held_out_texts(
    spec: CorpusSpec,
    shards: Sequence[ShardRef],
    store: Store,
    pins: Mapping[str, Any],  # Any: as `pin_documents` left it
) -> Iterator[str]:
    text = ""
    for shard in shards:
        for piece in read_documents(store, shard):
            text += exchange(piece)
            if piece.final:
                yield text
                text = ""
    for source in read_sources(_against(spec), (), store, pins.get("against", {})):
        yield from (exchange(document) for _, document in source)


def _against(spec: CorpusSpec) -> tuple[Files | HubDataset, ...]:
    return spec.decontamination.against if spec.decontamination else ()


def _pieces(documents: Iterable[Document], max_bytes: int) -> Iterator[Document]:
    for document in documents:
        if document.messages:
            yield document
            continue
        parts = split_text(document.text, max_bytes)
        for i, part in enumerate(parts):
            yield Document(document.id, part, document.domain, final=i == len(parts) - 1)
