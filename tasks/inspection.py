"""Inspect: what a source could give a target, over a sample of text, before the run."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fusion_core.alignment import Pair
from fusion_core.preflight import (
    compare_choices,
    compare_vocabularies,
    count_rows,
    groups_of_rows,
    measure_truncation,
)
from fusion_core.text_kinds import KINDS, classify_bytes
from fusion_core.types import NO_BOUNDARY, Scored, Tokens, VocabMap
from fusion_core.vocab_mapping import Encode
from fusion_core.vocabulary import Vocabulary
from tasks.artifacts import InspectionRef, Runtime, ScoredRef, ShardRef, TokenizerRef
from tasks.corpora.documents import Document, read_documents
from tasks.engines import Problem, count_parameters
from tasks.engines.encoding import Encoder
from tasks.engines.quarantine import check_some_left, encode_readable
from tasks.formats.shards import read_scored
from tasks.models.folders import CONFIG, context_window, encode_mid_text, load_config, vocab_rows
from tasks.preflight.findings import Description, ModelScores, PairFindings, Rows, ScoreFindings, write_findings
from tasks.step import Output, step
from tasks.storage.store import open_store


@step(version=1)
def inspect_pair(
    source: TokenizerRef, target: TokenizerRef, sample: Sequence[ShardRef], *, runtime: Runtime, out: Output
) -> InspectionRef:
    """What two vocabularies share and where their rows meet on the sample: `PairFindings`. No weights are needed.

    Documents that one of the models can't read are left out. Raises `ValueError` when it can read none.
    """
    store = open_store(runtime)
    encoders = [Encoder.load(store, ref) for ref in (source, target)]
    documents, left_out = _readable(encoders, [d for shard in sample for d in read_documents(store, shard)])
    theirs, ours = (_read(encoder, documents) for encoder in encoders)
    overlap = compare_vocabularies(theirs.vocabulary, ours.vocabulary, ours.encode, theirs.tokens)
    findings = PairFindings(
        source=_describe(theirs, documents),
        target=_describe(ours, documents),
        sample_bytes=sum(len(document.text.encode()) for document in documents),
        **asdict(overlap),
        **_count_rows(theirs, ours, documents),
    )
    write_findings(out.dir, findings)
    out.facts |= {"common_share": round(findings.rows.common_share, 6), "rows": findings.rows.total}
    if left_out:
        out.facts["left_out"] = left_out
    return out.ref(InspectionRef)


@step(version=1)
def inspect_scores(
    names: Sequence[str],
    scored: Sequence[Sequence[ScoredRef]],
    candidates: Sequence[str],
    target: str,
    sample: Sequence[ShardRef],
    *,
    runtime: Runtime,
    out: Output,
) -> InspectionRef:
    """What each of the models `names` paid for the sample and what its extraction kept: `ScoreFindings`.

    `scored[i][j]` is model `names[i]` on shard `sample[j]`. The choices of both scores are compared among the
    `candidates` that were run, where the target was run too.
    """
    store = open_store(runtime)
    documents = [read_documents(store, shard) for shard in sample]
    read = {name: [read_scored(store.fetch(ref)) for ref in own] for name, own in zip(names, scored, strict=True)}
    compared = differ = 0
    taking_part = [name for name in candidates if name in read]
    if target in read and len(taking_part) > 1:
        for shard in range(len(sample)):
            found = compare_choices([read[name][shard] for name in taking_part], read[target][shard].tokens)
            compared, differ = compared + found[0], differ + found[1]
    findings = ScoreFindings(
        models={name: _measure(own, documents) for name, own in read.items()},
        documents_compared=compared,
        documents_chosen_differently=differ,
    )
    write_findings(out.dir, findings)
    out.facts["bits_per_byte"] = {name: model.bits_per_byte for name, model in findings.models.items()}
    return out.ref(InspectionRef)


@dataclass(frozen=True)
class _Reading:
    """One model's files, and the sample as its tokenizer cuts it."""

    folder: Path
    vocabulary: Vocabulary
    tokens: Tokens
    is_text: torch.Tensor
    encode: Encode
    has_chat_template: bool


def _readable(encoders: Sequence[Encoder], documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """The documents that all can read, and the ids of the others."""
    left_out: dict[str, Problem] = {}
    for encoder in encoders:
        encoder.check(documents)
        _, problems = encode_readable(encoder, documents, None)
        unread = {documents[number].id: problem for number, problem in problems.items()}
        check_some_left(encoder.name, unread, len({document.id for document in documents}))
        left_out |= unread
    return [document for document in documents if document.id not in left_out], list(left_out)


def _read(encoder: Encoder, documents: Sequence[Document]) -> _Reading:
    tokenizer, read = encoder.tokenizer, encoder(documents)
    encode, has_chat_template = encode_mid_text(tokenizer), bool(tokenizer.chat_template)
    return _Reading(encoder.folder, encoder.vocabulary, read.tokens, read.is_text, encode, has_chat_template)


def _count_rows(source: _Reading, target: _Reading, documents: Sequence[Document]) -> dict[str, dict[str, Rows]]:
    """The target's rows by kind of text and by domain, without those of conversations whose label is no text."""
    nowhere = VocabMap(torch.full((source.vocabulary.size,), -1), target.vocabulary.size)
    pair = Pair(source.vocabulary, target.vocabulary, nowhere)
    texts = [document.text.encode() for document in documents]
    domains = list(dict.fromkeys(document.domain for document in documents))
    of_document = torch.tensor([domains.index(document.domain) for document in documents])
    groups = {
        "kinds": (KINDS, groups_of_rows(target.tokens, texts, classify_bytes(texts))),
        "domains": (domains, of_document[target.tokens.doc_of_token]),
    }
    found: dict[str, dict[str, Rows]] = {}
    for name, (names, group) in groups.items():
        of_text = group.where(target.is_text.roll(-1), -1)
        counts = count_rows(source.tokens, target.tokens, pair, of_text, len(names))
        found[name] = {
            group_name: Rows(common=c.common, bridged=c.bridged, absent=c.absent)
            for group_name, c in zip(names, counts, strict=True)
            if c.rows
        }
    return found


def _describe(read: _Reading, documents: Sequence[Document]) -> Description:
    folder, vocabulary = read.folder, read.vocabulary
    config = load_config(folder) if (folder / CONFIG).is_file() else None
    size = sum(len(document.text.encode()) for document in documents)
    return Description(
        tokens=vocabulary.size,
        roles={role: vocabulary.pieces[token] or "" for role, token in vocabulary.roles.items()},
        chat_template=read.has_chat_template,
        adds_prefix_space=vocabulary.adds_prefix_space,
        normalizes=vocabulary.normalizes,
        bytes_per_token=round(size / max(len(read.tokens.ids), 1), 4),
        embedding_rows=None if config is None else vocab_rows(config),
        window=None if config is None else context_window(config),
        parameters=None if config is None else count_parameters(config, trusted=any(folder.glob("*.py"))),
    )


def _measure(shards: Sequence[Scored], documents: Sequence[Sequence[Document]]) -> ModelScores:
    nats: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for scored, pieces in zip(shards, documents, strict=True):
        for piece, paid in zip(pieces, _nats_of_pieces(scored, pieces).tolist(), strict=True):
            nats[piece.domain] = nats.get(piece.domain, 0.0) + paid
            sizes[piece.domain] = sizes.get(piece.domain, 0) + len(piece.text.encode())
    losses = [measure_truncation(scored) for scored in shards]
    rows = max(sum(loss.rows for loss in losses), 1)
    lost = sum(loss.nats * loss.rows for loss in losses) / math.log(2) / max(sum(sizes.values()), 1)
    return ModelScores(
        bits_per_byte={name: round(nats[name] / math.log(2) / sizes[name], 6) for name in nats},
        kept=round(sum(loss.kept * loss.rows for loss in losses) / rows, 6),
        label_kept=round(sum(loss.label_kept * loss.rows for loss in losses) / rows, 6),
        truncation_bits=round(lost, 6) if math.isfinite(lost) else None,
    )


def _nats_of_pieces(scored: Scored, pieces: Sequence[Document]) -> torch.Tensor:
    """Nats of each piece's text; the end token isn't counted. Quarantined pieces cost nothing."""
    tokens = scored.tokens
    last = tokens.doc_offsets[1:] - 1
    is_end = torch.tensor([piece.final for piece in pieces]) & (tokens.boundaries[last] == NO_BOUNDARY)
    nll = scored.nll.double().nan_to_num(nan=0.0)
    nll[last[is_end & (tokens.doc_offsets.diff() > 1)] - 1] = 0.0
    total = torch.zeros(len(pieces), dtype=torch.float64)
    return total.index_add_(0, tokens.doc_of_token, nll)
