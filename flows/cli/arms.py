"""What the terminal shows of a study: every arm, under the question that it answers."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from flows.cli.tables import make_table, percent_cell, score_cell

if TYPE_CHECKING:
    from fusion_core.metrics import Interval
    from tasks.report.arms import ArmResult, ArmTable


def arms_table(table: "ArmTable") -> RenderableType:
    """Bits per byte of every arm, its difference from the rival, and the main arm's from it."""
    from tasks.report.arms_text import describe_regressions, name_of, seeds_of, verdict

    shown = make_table(
        "bits per byte", *[d.name for d in table.domains], "mean",
        f"against {table.rival}", "95 % interval", "by seed", f"{table.main} against", "gap closed",
    )  # fmt: skip
    best = [min(values) for values in zip(*[_estimates(arm) for arm in table.arms], strict=True)]
    for group, arms in table.groups:
        shown.add_section()
        shown.add_row(Text(group, style="dim"))
        for arm in arms:
            cells = [score_cell(value, best[n]) for n, value in enumerate(_estimates(arm))]
            gain, reverse = arm.against_rival, arm.main_against
            difference = [percent_cell(gain.mean), _between(gain.mean)] if gain else ["", ""]
            shown.add_row(
                Text(f"  {name_of(arm, table)}", style="bold" if arm.name == table.main else ""),
                *cells,
                *difference,
                seeds_of(arm),
                percent_cell(reverse.mean) if reverse else "",
                f"{100 * arm.recovered[-1]:.0f} %" if arm.recovered else "",
            )
    lines = describe_regressions(table)
    worse = [Text(f"worse than {table.rival}: {line}", style="dim") for line in lines]
    return Group(shown, Text(), Text(verdict(table)), *worse)


def _estimates(arm: "ArmResult") -> list[float]:
    return [interval.estimate for interval in (*arm.domains, arm.mean)]


def _between(interval: "Interval") -> str:
    return f"{100 * interval.low:+.1f} .. {100 * interval.high:+.1f} %"
