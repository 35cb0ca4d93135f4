"""What an inspection finds: the values that its steps write as JSON and its report reads."""

from pathlib import Path
from typing import TypeVar

from pydantic import Field

from fusion_core.spec import Spec
from tasks.artifacts import InspectionRef
from tasks.storage.store import Store

FINDINGS = "findings.json"
S = TypeVar("S", bound=Spec)


class Rows(Spec):
    """Target rows that predict text, by what a source has for them (`fusion_core.preflight.RowCounts`)."""

    common: int
    bridged: int
    absent: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.common + self.bridged + self.absent

    @property
    def common_share(self) -> float:
        """Share of rows at common boundaries; 0 of none."""
        return self.common / max(self.total, 1)


class Description(Spec):
    """What a model's small files and its tokens of the sample say of it; None where the files don't tell.

    padded_rows: rows of the embedding without a token. bytes_per_token: of the sample's text.
    """

    tokens: int
    roles: dict[str, str]
    chat_template: bool
    adds_prefix_space: bool
    normalizes: bool
    bytes_per_token: float
    embedding_rows: int | None
    window: int | None
    parameters: int | None

    @property
    def padded_rows(self) -> int | None:
        """Rows of the embedding without a token."""
        return None if self.embedding_rows is None else self.embedding_rows - self.tokens


class PairFindings(Spec):
    """A source and a target over a sample of text; tokens and bytes as in `fusion_core.preflight.VocabularyOverlap`.

    kinds, domains: rows by kind of text and by domain; kinds without a row are left out.
    """

    source: Description
    target: Description
    sample_bytes: int
    source_tokens: int
    target_tokens: int
    shared: int
    multi_piece: int
    cut_characters: int
    read_bytes: int
    shared_bytes: int
    multi_piece_bytes: int
    kinds: dict[str, Rows]
    domains: dict[str, Rows]

    @property
    def rows(self) -> Rows:
        """All kinds together."""
        every = self.kinds.values()
        return Rows(
            common=sum(r.common for r in every),
            bridged=sum(r.bridged for r in every),
            absent=sum(r.absent for r in every),
        )


class ModelScores(Spec):
    """What one model, run over the sample, showed: bits per byte of each domain, and what its extraction kept.

    truncation_bits: bits per byte that a student pays more at most if all it learns is what was kept; None where the
        extraction has no tail (`fusion_core.preflight.Truncation`).
    """

    bits_per_byte: dict[str, float]
    kept: float
    label_kept: float
    truncation_bits: float | None


class ScoreFindings(Spec):
    """The models that were run, by name, and how often the two scores of fusion choose different teachers."""

    models: dict[str, ModelScores]
    documents_compared: int = 0
    documents_chosen_differently: int = 0


class Verdict(Spec):
    """Whether to fuse a source, and why. `choice`: fuse, fuse with a warning, or leave out."""

    choice: str = Field(pattern="^(fuse|fuse with a warning|leave out)$")
    reasons: tuple[str, ...]


class Inspection(Spec):
    """A whole recipe: the pairs by source's name, what was run, what is needed, and the verdicts by source.

    not_run: models that weren't run over the sample, and why. warnings: of the recipe as a whole.
    """

    title: str
    target: str
    pairs: dict[str, PairFindings]
    scores: ScoreFindings | None
    not_run: dict[str, str]
    needs: dict[str, str]
    warnings: tuple[str, ...]
    verdicts: dict[str, Verdict]

    @property
    def has_warnings(self) -> bool:
        """Whether anything stands in the way of fusing it as it is."""
        return bool(self.warnings) or any(verdict.choice != "fuse" for verdict in self.verdicts.values())


def write_findings(folder: Path, findings: Spec) -> None:
    """Writes one inspection's JSON."""
    (folder / FINDINGS).write_text(findings.model_dump_json(indent=1), encoding="utf-8")


def read_findings(store: Store, ref: InspectionRef, kind: type[S]) -> S:
    """The findings of an inspection in the store, as the kind that its step writes."""
    return kind.model_validate_json((store.fetch(ref, [FINDINGS]) / FINDINGS).read_bytes())
