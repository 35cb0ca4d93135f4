"""A study's table as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterable

from fusion_core.metrics import Interval
from tasks.report.arms import CONTROLS, ArmResult, ArmTable, Gain
from tasks.report.comparison import percent
from tasks.report.markup import markdown_text

_OTHERS, _NOT_COMPARED = "†", "‡"


def table_markdown(table: ArmTable) -> str:
    """One Markdown table per heading, then where an arm is worse than the rival."""
    domains = [domain.name for domain in table.domains]
    header = ["", *domains, "mean", f"against {table.rival}", "by seed", f"{table.main} against it", "gap closed"]
    lines = [f"# {markdown_text(table.title)}", "", markdown_text(verdict(table)), ""]
    for group, arms in table.groups:
        lines += [f"## {markdown_text(group)}", "", *_markdown(header, [_cells(arm, table) for arm in arms]), ""]
    lines += [markdown_text(explain(table)), "", f"## Worse than {markdown_text(table.rival)}", ""]
    worse = [f"- {markdown_text(line)}" for line in describe_regressions(table)]
    return "\n".join(lines + (worse or ["No trained arm, in no domain."])) + "\n"


def table_csv(table: ArmTable) -> str:
    """One line per arm and place (each domain and the mean), every number in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ["group", "arm", "kind", "seeds", "place", "bits_per_byte", "low", "high"]
    columns += ["against_rival", "against_rival_low", "against_rival_high"]
    columns += ["main_against", "main_against_low", "main_against_high", "recovered", "lm_weight", "steps", "tokens"]
    writer.writerow([*columns, "same_batches"])
    for arm in table.arms:
        training = arm.training
        trained = [training.lm_weight, training.steps, training.tokens, training.same_batches] if training else [""] * 4
        for n, place in enumerate([*(domain.name for domain in table.domains), "mean"]):
            gains = [*_numbers(arm.against_rival, n), *_numbers(arm.main_against, n)]
            recovered = arm.recovered[n] if arm.recovered else ""
            seeds = " ".join(map(str, arm.seeds))
            start = [arm.group, arm.name, arm.kind, seeds, place, *_ends((*arm.domains, arm.mean)[n])]
            writer.writerow([*start, *gains, recovered, *trained])
    return out.getvalue()


def verdict(table: ArmTable) -> str:
    """What came of the main arm, in a sentence."""
    main = table.arm(table.main)
    if main is None or main.against_rival is None:
        return f"{table.main} was not measured against {table.rival} yet."
    said = f"{table.main} needs {main.mean.estimate:.3f} bits per byte, {_gain(main.against_rival)} {table.rival}"
    controls = [arm for arm in table.arms if arm.group == CONTROLS and arm.main_against is not None]
    if not controls:
        return f"{said}."
    best = min(controls, key=lambda arm: arm.mean.estimate)
    assert best.main_against is not None
    return f"{said}, and {_gain(best.main_against)} {best.name}, the best control."


def explain(table: ArmTable) -> str:
    """How to read the table."""
    amount = ", ".join(f"{domain.name} {domain.documents:,} documents" for domain in table.domains)
    return (
        f"Bits per byte of held-out text ({amount}), lower is better; the mean gives each domain the same weight. "
        f"Differences are relative, below zero is better; in brackets 95 % intervals over {table.resamples:,} paired "
        "bootstrap resamples of the documents. They say nothing of other seeds: what each seed of the data order gave "
        f"stands beside them, and “1 seed” where there was but one. {_explain_marks(table)}Gap closed: of the way from "
        f"{table.rival} to the best source of each domain, the mean share."
    )


def _explain_marks(table: ArmTable) -> str:
    """What is known of the arms' batches, the marked ones' and the others'; empty without a rival."""
    if table.arm(table.rival) is None:
        return ""
    return (
        f"A dagger ({_OTHERS}) marks arms that were trained on other batches than {table.rival}; a double dagger "
        f"({_NOT_COMPARED}) those whose batches were not compared, for want of a common seed or of the record of a "
        "training. All other trained arms saw the same batches in the same order, by their SHA-256, in each seed that "
        "both have. "
    )


def describe_regressions(table: ArmTable) -> list[str]:
    """A line for each place where a trained or merged arm is worse than the rival."""
    return [
        f"{r.arm}, {r.domain or 'mean over domains'}: {_interval(r.difference)}"
        + ("" if r.certain else "; the interval holds zero")
        for r in table.regressions
    ]


def seeds_of(arm: ArmResult) -> str:
    """The difference from the rival in each seed, or how many seeds there are."""
    if arm.kind == "read":
        return ""
    gain = arm.against_rival
    if len(arm.seeds) == 1:
        return "1 seed"
    if gain is None or not gain.by_seed:
        return ", ".join(f"{value:.3f}" for value in arm.by_seed)
    return ", ".join(percent(value) for value in gain.by_seed)


def name_of(arm: ArmResult, table: ArmTable) -> str:
    """The arm's name, marked where it was trained on other batches than the rival, or nobody knows on which."""
    if arm.kind != "trained" or table.arm(table.rival) is None:
        return arm.name
    same = arm.training.same_batches if arm.training else None
    return arm.name if same else f"{arm.name} {_NOT_COMPARED if same is None else _OTHERS}"


def _cells(arm: ArmResult, table: ArmTable) -> list[str]:
    gains = [_interval(gain.mean) if gain else "" for gain in (arm.against_rival, arm.main_against)]
    return [
        name_of(arm, table),
        *[f"{interval.estimate:.3f}" for interval in (*arm.domains, arm.mean)],
        gains[0],
        seeds_of(arm),
        gains[1],
        percent(arm.recovered[-1]).lstrip("+") if arm.recovered else "",
    ]


def _gain(gain: Gain) -> str:
    interval = gain.mean
    if interval.low <= 0 <= interval.high:
        return f"not to be told apart ({_interval(interval)}) from"
    return f"{'fewer' if interval.high < 0 else 'more'} ({_interval(interval)}) than"


def _interval(interval: Interval) -> str:
    return f"{percent(interval.estimate)} ({percent(interval.low)} to {percent(interval.high)})"


def _markdown(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(map(markdown_text, cells))} |" for cells in (header, ruler, *rows)]


def _ends(interval: Interval) -> list[float]:
    return [interval.estimate, interval.low, interval.high]


def _numbers(gain: Gain | None, place: int) -> list[float | str]:
    return ["", "", ""] if gain is None else [*_ends((*gain.domains, gain.mean)[place])]
