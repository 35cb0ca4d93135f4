"""What findings come to."""

import pytest

from tasks.preflight.findings import Description, ModelScores, PairFindings, Rows, ScoreFindings
from tasks.preflight.licences import LicenceFinding
from tasks.preflight.verdicts import judge

MODEL = Description(
    tokens=100,
    roles={"eos": "</s>"},
    chat_template=False,
    adds_prefix_space=False,
    normalizes=False,
    bytes_per_token=4,
    embedding_rows=128,
    window=512,
    parameters=1000,
)


def pair(source: Description = MODEL, **kinds: tuple[int, int, int]) -> PairFindings:
    rows = {
        kind: Rows(common=common, bridged=bridged, absent=absent) for kind, (common, bridged, absent) in kinds.items()
    }
    counts = dict.fromkeys(("source_tokens", "target_tokens", "shared", "multi_piece", "cut_characters"), 1)
    sizes = dict.fromkeys(("sample_bytes", "read_bytes", "shared_bytes", "multi_piece_bytes"), 1)
    return PairFindings(source=source, target=MODEL, kinds=rows, domains=rows, **counts, **sizes)


def scores(source: dict[str, float], target: dict[str, float], truncation: float | None = 0.01) -> ScoreFindings:
    def model(bits: dict[str, float], lost: float | None) -> ModelScores:
        return ModelScores(bits_per_byte=bits, kept=0.5, label_kept=0.8, truncation_bits=lost)

    return ScoreFindings(models={"source": model(source, truncation), "target": model(target, 0.0)})


def judge_one(found: PairFindings, ran: ScoreFindings | None = None, licences: tuple[LicenceFinding, ...] = ()):
    verdict = judge("target", {"source": found}, ran, licences)["source"]
    return verdict.choice, "; ".join(verdict.reasons)


GOOD = pair(prose=(95, 5, 0))


def test_rows_that_meet_are_fused_with_the_reason():
    assert judge_one(GOOD) == ("fuse", "95% of the target's rows stand at common boundaries")


@pytest.mark.parametrize(
    ("found", "choice", "reason"),
    [
        (pair(prose=(3, 7, 0)), "leave out", "only 30%"),
        (pair(prose=(70, 30, 0)), "fuse with a warning", "70% of the target's rows"),
        (pair(prose=(90, 10, 0), numbers=(4, 6, 0)), "fuse with a warning", "numbers: 40% of rows at common bound"),
        (pair(prose=(990, 10, 0), numbers=(4, 6, 0)), "fuse", "98%"),  # too few numbers to matter
        (pair(MODEL.model_copy(update={"roles": {}}), prose=(9, 1, 0)), "fuse with a warning", "no end token"),
        (pair(MODEL.model_copy(update={"embedding_rows": 90}), prose=(9, 1, 0)), "leave out", "10 rows fewer"),
    ],
)
def test_vocabularies_decide_without_any_model_run(found, choice, reason):
    assert judge_one(found)[0] == choice
    assert reason in judge_one(found)[1]


@pytest.mark.parametrize(
    ("ran", "choice", "reason"),
    [
        (scores({"a": 2.0, "b": 0.9}, {"a": 1.0, "b": 1.0}), "fuse", "better than the target on b"),
        (scores({"a": 1.1, "b": 1.2}, {"a": 1.0, "b": 1.0}), "fuse with a warning", "never wins"),
        (scores({"a": 1.1, "b": 1.2}, {"a": 1.0, "b": 1.0}), "fuse with a warning", "at best +10%, on a"),
        (scores({"a": 1.9, "b": 2.0}, {"a": 1.0, "b": 1.0}), "leave out", "1.9 times"),
        (scores({"a": 0.5}, {"a": 1.0}, 0.3), "fuse with a warning", "up to 0.30 bits per byte"),
        (scores({"a": 0.5}, {"a": 1.0}, None), "fuse", "better than the target on a"),
    ],
)
def test_what_models_pay_for_the_sample_decides_too(ran, choice, reason):
    assert judge_one(GOOD, ran)[0] == choice
    assert reason in judge_one(GOOD, ran)[1]


def test_only_the_sources_own_licence_counts_against_it():
    own, other = (LicenceFinding(name, "conflict", "it forbids that") for name in ("source", "elsewhere"))
    assert judge_one(GOOD, licences=(own, other)) == ("fuse with a warning", "licence: it forbids that")
    assert judge_one(GOOD, licences=(other,))[0] == "fuse"
