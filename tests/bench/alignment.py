"""Aligning and fusing a shard of half a million tokens, in seconds per 2048 target tokens, against loops over rows.

The texts are WikiText-2 as Llama-2 (the target) and MPT (the source) cut them, rows of ten candidates are drawn. None
is part of the project: they are looked for in the folder that LLM_FUSE_SHARED names, or else in `shared/` beside the
checkout.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from fusion_core.alignment import AlignmentStrategy, ByteBoundary, MinEditDTW, Pair, common_rows
from fusion_core.alignment.projection import project_entries
from fusion_core.alignment.warping import token_sequences
from fusion_core.distributions import take_rows
from fusion_core.distributions.mixing import mix_entries
from fusion_core.edit_distance import edit_distances
from fusion_core.fusion import AvgCE, FusionStrategy, MinCE
from fusion_core.min_edit import MinEdit
from fusion_core.types import Scored, TokenDist, Tokens
from fusion_core.vocab_mapping import BytePiece, Canonical
from tasks.models.folders import encode_documents, encode_mid_text, load_tokenizer, load_vocabulary, vocabulary_of
from tests.bench.rows import Action, Row, Skip, measure_peak, race

_SHARED = Path(os.environ.get("LLM_FUSE_SHARED") or Path(__file__).parents[3] / "shared")
_SOURCE, _TARGET = (_SHARED / "tokenizers" / name for name in ("mpt", "llama-2"))
_TEXTS = [_SHARED / "data" / "wikitext2" / name for name in ("valid.txt", "test.txt")]

_CHARACTERS, _CHARACTERS_OF_DOCUMENT = 1_750_000, 7000  # about 2000 tokens a document
_CANDIDATES, _TEACHERS, _SEQUENCE = 10, 3, 2048
_LOOPED_ROWS, _WARPED_TOKENS = 2000, 150

_Mapping = BytePiece | Canonical | MinEdit
_ALIGNMENTS: dict[str, tuple[_Mapping, AlignmentStrategy, str]] = {
    "ByteBoundary": (BytePiece(), ByteBoundary(), "<= 0.5 ms"),
    "ByteBoundary, bridge": (BytePiece(), ByteBoundary(bridge=True), "<= 3 ms"),
    "ByteBoundary, canonical, cover 2, lookahead 2": (Canonical(), ByteBoundary(cover=2, lookahead=2), "<= 25 ms"),
    "MinEditDTW": (MinEdit(), MinEditDTW(), "<= 10 ms"),
}
_FUSIONS: dict[str, FusionStrategy] = {"MinCE": MinCE(), "AvgCE": AvgCE()}


def rows() -> Iterator[Row | Skip]:
    """One row per strategy of aligning, and per strategy of fusing three teachers, their alignment included."""
    missing = [path for path in (_SOURCE, _TARGET, *_TEXTS) if not path.exists()]
    if missing:
        yield Skip("alignment", f"no {missing[0]}")
        return
    for name, (_, strategy, limit) in _ALIGNMENTS.items():
        twin = _warp_by_loops if isinstance(strategy, MinEditDTW) else _project_by_loops
        yield _measure(name, partial(_prepare_alignment, name), partial(_prepare_loops, name, twin), limit)
    for name in _FUSIONS:
        prepare = partial(_prepare_fusion, name)
        yield _measure(f"{_TEACHERS} teachers projected and fused, {name}", prepare, _prepare_sorting, "<= 5 ms")


@dataclass(frozen=True)
class _Twin:
    """What is compared with: `scale` times what `action` takes is what the whole shard would."""

    name: str
    action: Action
    scale: float


def _measure(name: str, prepare: Callable[[], Action], prepare_twin: Callable[[], _Twin], limit: str) -> Row:
    twin = prepare_twin()
    seconds, twin_seconds = race(prepare(), twin.action)
    sequences = len(_shard().target.ids) / _SEQUENCE
    return Row(
        name, seconds / sequences, twin.name, twin_seconds * twin.scale / sequences, measure_peak(prepare), limit
    )


@dataclass(frozen=True)
class _Shard:
    """One text as two tokenizers cut it, and what the source expects in each row."""

    source: Scored
    target: Tokens


@cache
def _shard() -> _Shard:
    text = "".join(path.read_text(encoding="utf-8") for path in _TEXTS).replace("<unk>", "unk")[:_CHARACTERS]
    texts = [text[i : i + _CHARACTERS_OF_DOCUMENT] for i in range(0, len(text), _CHARACTERS_OF_DOCUMENT)]
    source, target = (_read(folder, texts) for folder in (_SOURCE, _TARGET))
    return _Shard(_score(source, load_vocabulary(_SOURCE).size), target)


def _read(folder: Path, texts: Sequence[str]) -> Tokens:
    tokenizer = load_tokenizer(folder)
    return encode_documents(tokenizer, vocabulary_of(tokenizer), texts, [True] * len(texts))


def _score(tokens: Tokens, vocab_size: int) -> Scored:
    """Rows of ten candidates, drawn as often as they occur in the text, the label among them in three of five."""
    generator, number = torch.Generator().manual_seed(0), len(tokens.ids)
    occurrences = torch.bincount(tokens.ids, minlength=vocab_size).double()
    drawn = torch.multinomial(occurrences, number * _CANDIDATES, replacement=True, generator=generator)
    ids, labels = drawn.view(number, _CANDIDATES), tokens.ids.roll(-1).unsqueeze(1)
    ids[:, :1] = labels.where(torch.rand(number, 1, generator=generator) < 0.6, ids[:, :1])
    ids = ids.sort(1).values
    kept = torch.ones_like(ids, dtype=torch.bool)
    kept[:, 1:] = ids[:, 1:] != ids[:, :-1]
    shares = (2 * torch.randn(number, _CANDIDATES + 1, generator=generator)).log_softmax(1)
    logprobs, rest = shares[:, :-1], shares[:, -1]
    tail = torch.logaddexp(rest, logprobs.masked_fill(kept, -torch.inf).logsumexp(1))
    label_logprob = logprobs.masked_fill(~(kept & (ids == labels)), -torch.inf).logsumexp(1)
    nll = -label_logprob.where(label_logprob > -torch.inf, tail - 2)
    nll[tokens.doc_offsets[1:] - 1] = math.nan
    offsets = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    nothing = torch.full_like(tail, -torch.inf)
    return Scored(tokens, TokenDist(offsets, ids[kept], logprobs[kept], tail, nothing, vocab_size), nll)


def _prepare_alignment(name: str) -> Action:
    mapping, strategy, _ = _ALIGNMENTS[name]
    shard = _shard()
    return partial(strategy, shard.source, shard.target, _pair(mapping))


def _pair(mapping: _Mapping) -> Pair:
    source, target = load_vocabulary(_SOURCE), load_vocabulary(_TARGET)
    encode = encode_mid_text(load_tokenizer(_TARGET))
    return Pair(source, target, mapping(source, target, encode), encode)


def _prepare_fusion(name: str) -> Action:
    return partial(_align_and_fuse, _FUSIONS[name], _teachers(), _shard().target, _pair(BytePiece()))


def _align_and_fuse(strategy: FusionStrategy, teachers: Sequence[Scored], target: Tokens, pair: Pair) -> object:
    return strategy([ByteBoundary()(teacher, target, pair) for teacher in teachers], target)


def _teachers() -> list[Scored]:
    """The source's rows in other orders: as many candidates, others at each place."""
    source, generator = _shard().source, torch.Generator().manual_seed(1)
    orders = [torch.randperm(source.dist.num_rows, generator=generator) for _ in range(_TEACHERS)]
    return [replace(source, dist=take_rows(source.dist, order)) for order in orders]


def _prepare_sorting() -> _Twin:
    teachers, target, pair = _teachers(), _shard().target, _pair(BytePiece())
    weights = torch.full((_TEACHERS, len(target.ids)), 1 / _TEACHERS)

    def fuse() -> TokenDist:
        rows = [common_rows(teacher.tokens, target) for teacher in teachers]
        return mix_entries([project_entries(t.dist, row, pair) for t, row in zip(teachers, rows, strict=True)], weights)

    return _Twin("all entries of the shard sorted, then mixed", fuse, 1.0)


def _prepare_loops(name: str, prepare: Callable[[_Mapping], _Twin]) -> _Twin:
    return prepare(_ALIGNMENTS[name][0])


def _project_by_loops(mapping: _Mapping) -> _Twin:
    """Plain rows, one candidate at a time."""
    shard, pair = _shard(), _pair(mapping)
    common = common_rows(shard.source.tokens, shard.target).tolist()
    offsets, ids = shard.source.dist.row_offsets.tolist(), shard.source.dist.ids.tolist()
    logprobs, target_of = shard.source.dist.logprobs.tolist(), pair.vocab_map.ids.tolist()

    def project() -> list[dict[int, float]]:
        found = []
        for row in common[:_LOOPED_ROWS]:
            kept: dict[int, float] = {}
            for entry in range(offsets[row], offsets[row + 1]) if row >= 0 else ():
                target = target_of[ids[entry]]
                kept[target] = kept.get(target, 0.0) + math.exp(logprobs[entry])
            found.append({token: math.log(prob) for token, prob in sorted(kept.items())})
        return found

    return _Twin(f"plain rows by loops, {_LOOPED_ROWS} scaled up", project, len(common) / _LOOPED_ROWS)


def _warp_by_loops(mapping: _Mapping) -> _Twin:
    """The full table of one document's first tokens."""
    shard, pair = _shard(), _pair(mapping)
    strings = [
        [sequences.strings[token] for token in sequences.tokens[:_WARPED_TOKENS]]
        for sequences in (token_sequences(shard.source.tokens, pair.source), token_sequences(shard.target, pair.target))
    ]

    def warp() -> float:
        distances = edit_distances(*strings).tolist()
        above = [math.inf] * _WARPED_TOKENS
        for i, costs in enumerate(distances):
            here, before, diagonal = [], math.inf, 0.0 if i == 0 else math.inf
            for up, cost in zip(above, costs, strict=True):
                before = cost + min(diagonal, up, before)
                diagonal = up
                here.append(before)
            above = here
        return above[-1]

    cells = shard.source.tokens.doc_offsets.diff() * shard.target.doc_offsets.diff()
    name = f"full table by loops, {_WARPED_TOKENS} x {_WARPED_TOKENS} tokens scaled up"
    return _Twin(name, warp, float(cells.sum()) / _WARPED_TOKENS**2)
