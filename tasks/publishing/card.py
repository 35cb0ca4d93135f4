"""The model card: what a model is, what it was made from and how well it does, as the Hugging Face hub reads cards."""

from collections.abc import Iterable, Sequence

from fusion_core.metrics import Interval
from tasks.artifacts import Manifest
from tasks.publishing.provenance import Data, Evaluated, Origin, Provenance
from tasks.quantities import format_bytes, format_seconds
from tasks.report.comparison import Comparison, Standing, percent
from tasks.report.conduct import gate_line
from tasks.report.markup import markdown_text

CARD, RECIPE, PROVENANCE = "README.md", "recipe.yaml", "provenance.jsonld"
_PARTS = {"target": "target: trained on", "merged": "merged", "teacher": "source: taught"}
_NOT_STATED = "not stated"


def write_card(provenance: Provenance) -> str:
    """The card as Markdown with its YAML header, a function of the provenance alone.

    The header names the models it comes from and their relation, data sets, licence and results as the hub understands
    them. Every text that isn't ours is escaped: it can become neither markup nor another table cell.
    """
    from huggingface_hub import ModelCard

    sections = [
        f"# {markdown_text(provenance.name)}",
        _summary(provenance),
        *_section("Models it was made from", _origins(provenance.origins)),
        *_section("Text it learned from", _data(provenance.data)),
        *(_measures(provenance.evaluated) if provenance.evaluated else ()),
        *_section("Licences", _licences(provenance)),
        *_section("Time and environment", _effort(provenance.made)),
        *_section("How to use it", _usage()),
        *_section("How to make it again", _reproduction(provenance)),
    ]
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{_header(provenance)}\n---\n\n{body}\n"))


def _header(provenance: Provenance) -> str:
    from huggingface_hub import ModelCardData

    hub = [origin.id for origin in sorted(provenance.origins, key=lambda o: o.part == "teacher") if origin.id]
    taught = any(origin.part == "teacher" for origin in provenance.origins)
    tags = ["llm-fuse", *(["knowledge-fusion", "distillation"] if taught else [])]
    data = ModelCardData(
        base_model=list(dict.fromkeys(hub)) or None,
        base_model_relation=("merge" if provenance.is_merge else "finetune") if hub else None,
        datasets=list(dict.fromkeys(id for data in provenance.data for id in data.licences)) or None,
        eval_results=_results(provenance),
        library_name="transformers",
        license=provenance.licence,
        model_name=provenance.name,
        pipeline_tag="text-generation",
        tags=[*tags, *(["merge"] if provenance.is_merge else [])],
    )
    return str(data.to_yaml())


def _results(provenance: Provenance) -> list[object] | None:
    """The fused model's measures as the hub's leaderboards read them."""
    from huggingface_hub import EvalResult

    if provenance.evaluated is None:
        return None
    comparison = provenance.evaluated.comparison
    fused, results = comparison.fused, list[object]()
    for domain, interval in zip(comparison.domains, fused.domains, strict=True):
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="held-out text",
                dataset_type="held-out",
                dataset_config=domain.name,
                dataset_name=f"{domain.name} ({domain.documents} documents)",
                metric_type="bits_per_byte",
                metric_name="bits per byte",
                metric_value=round(interval.estimate, 4),
            )
        )
    for score in fused.scores:
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=score.task,
                dataset_name=score.task,
                metric_type=score.metric,
                metric_value=round(score.value, 4),
            )
        )
    return results


# ---- the body ------------------------------------------------------------------------------------------------


def _summary(provenance: Provenance) -> str:
    teachers = [origin.name for origin in provenance.origins if origin.part == "teacher"]
    heirs = [origin.name for origin in provenance.origins if origin.part != "teacher"]
    if provenance.is_merge:
        made = f"The weights of {_listed(heirs)}, merged"
    elif teachers:
        made = f"{_listed(heirs[:1])}, taught by {_listed(list(dict.fromkeys(teachers)))}"
    else:
        made = f"{_listed(heirs[:1]) or 'A new model'}, trained on text"
    told = f"{made}; made with llm-fuse."
    if provenance.recipe and provenance.recipe.get("description"):
        told += f" {markdown_text(str(provenance.recipe['description']))}"
    return f"{told}\n\n{markdown_text(provenance.evaluated.comparison.verdict)}" if provenance.evaluated else told


def _origins(origins: Sequence[Origin]) -> str:
    return _table(
        ["model", "part", "repository", "revision", "licence"],
        [
            [
                o.name,
                _PARTS[o.part],
                o.id or ("made here" if o.is_made_here else "a local folder"),
                (o.commit or o.ref.fingerprint)[:12],
                o.licence or ("–" if o.is_made_here else _NOT_STATED),
            ]
            for o in origins
        ],
    )


def _data(data: Sequence[Data]) -> str:
    return _table(
        ["text", "what", "documents", "size", "digest", "licence"],
        [
            [
                d.name,
                "; ".join(d.documents),
                f"{d.count:,}",
                format_bytes(d.bytes),
                d.digest[:12],
                ", ".join(licence or _NOT_STATED for licence in d.licences.values()) or _NOT_STATED,
            ]
            for d in data
        ],
    )


def _measures(evaluated: Evaluated) -> list[str]:
    comparison = evaluated.comparison
    return [
        *_section("Held-out text", _standings(comparison)),
        *_section("Against its rivals", _differences(comparison)),
        *_section("Where it is worse", _regressions(comparison)),
        *_section("Tasks", _tasks(comparison)),
        *_section("Smoke gate", "\n".join([gate_line(comparison.fused), *_gate_reasons(comparison.fused)])),
        *_section("Alignment", _coverage(evaluated)),
        *_section("Who taught what", _wins(evaluated)),
        *_section("Training", _trainings(evaluated)),
    ]


def _standings(comparison: Comparison) -> str:
    rows = [
        [s.name, *[_interval(interval) for interval in (*s.domains, s.mean)]]
        for s in comparison.standings
    ]  # fmt: skip
    amount = "; ".join(
        f"{markdown_text(d.name)}: {d.documents:,} documents, {format_bytes(d.bytes)}" for d in comparison.domains
    )
    return (
        f"Bits per byte, lower is better, with 95 % intervals over documents ({amount}).\n\n"
        + _table(["model", *[d.name for d in comparison.domains], "mean"], rows)
    )  # fmt: skip


def _differences(comparison: Comparison) -> str:
    rows = [[d.rival, *[_change(interval) for interval in (*d.domains, d.mean)]] for d in comparison.differences]
    header = ["bits per byte against", *[d.name for d in comparison.domains], "mean"]
    return f"Below zero this model is better.\n\n{_table(header, rows)}" if rows else ""


def _regressions(comparison: Comparison) -> str:
    if not comparison.differences:
        return ""
    lines = [
        f"- {markdown_text(r.domain or 'mean over domains')}, against {markdown_text(r.rival)}: {_change(r.difference)}"
        + ("" if r.certain else "; the interval holds zero")
        for r in comparison.regressions
    ]
    return "\n".join(lines) or "In no domain is it worse than the target or any other training of it."


def _tasks(comparison: Comparison) -> str:
    first = comparison.standings[0].scores
    rows = [[s.name, *[_interval(score.interval) for score in s.scores]] for s in comparison.standings]
    return _table(["model", *[f"{score.task} ({score.metric})" for score in first]], rows) if first else ""


def _gate_reasons(fused: Standing) -> list[str]:
    return [f"- {markdown_text(reason)}" for reason in (fused.gate.reasons if fused.gate else ())]


def _coverage(evaluated: Evaluated) -> str:
    rows = [
        [c.source, f"{c.rows:,}", _share(c.present, c.rows), _share(c.kept), _share(c.tail), _share(c.unknown)]
        for c in evaluated.coverage
    ]
    header = ["source", "rows", "filled", "kept", "tail", "unknown"]
    told = "Rows of the target that each source could fill, and the mean probability there."
    return f"{told}\n\n{_table(header, rows)}" if rows else ""


def _wins(evaluated: Evaluated) -> str:
    if evaluated.wins is None:
        return ""
    rows = []
    for domain, facts in evaluated.wins.domains.items():
        won = [_share(won, facts.documents) for won in facts.documents_won]
        rows.append([domain, f"{facts.documents:,}", *won, _share(facts.rows_covered, facts.rows)])
    header = ["domain", "documents", *evaluated.wins.candidates, "rows with a teacher"]
    return f"Share of documents that each model taught.\n\n{_table(header, rows)}"


def _trainings(evaluated: Evaluated) -> str:
    rows = [
        [t.name, t.objective, f"{t.epochs:g}", f"{t.steps:,}", f"{t.tokens:,}", f"{t.learning_rate:g}", f"{t.seed}"]
        for t in evaluated.trainings
        if t.role in ("fused", "baseline")
    ]
    return _table(["model", "objective", "epochs", "steps", "tokens", "learning rate", "seed"], rows) if rows else ""


def _licences(provenance: Provenance) -> str:
    own = f"Continues weights under {markdown_text(provenance.licence)}." if provenance.licence else ""
    lines = [
        f"- {markdown_text(f.subject)}: {markdown_text(f.reason)} ({f.severity})" for f in provenance.licence_findings
    ]
    return "\n\n".join(part for part in (own, "\n".join(lines)) if part)


def _effort(made: Sequence[Manifest]) -> str:
    seconds = sum(manifest.seconds for manifest in made)
    devices = sorted({str(manifest.environment.get("device", "unknown")) for manifest in made})
    packages = made[0].environment.get("packages", {})
    code = made[0].environment.get("code", {})
    commit = f", commit {code['commit'][:12]}{' with changes' * bool(code.get('dirty'))}" if "commit" in code else ""
    return (
        f"{len(made):,} artifacts, {format_seconds(seconds)} of computing in all (devices asked for: "
        f"{', '.join(devices)}); energy was not measured. "
        f"llm-fuse {code.get('version')}{commit}; {', '.join(f'{name} {v}' for name, v in packages.items())}."
    )


def _usage() -> str:
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PLACE")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PLACE")\n```\n\n'
        "`PLACE` is this folder or repository; nothing but transformers is needed."
    )


def _reproduction(provenance: Provenance) -> str:
    ref = provenance.manifest.ref
    command = f"```\nllm-fuse run {RECIPE}\n```\n\n" if provenance.recipe else ""
    return f"{command}It is artifact `{ref.address}`; what it was made from stands in `{PROVENANCE}` (W3C PROV)."


# ---- Markdown ------------------------------------------------------------------------------------------------


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text.strip() else []


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [[markdown_text(cell) for cell in cells] for cells in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _listed(names: Sequence[str]) -> str:
    plain = [markdown_text(name) for name in names]
    return " and ".join([", ".join(plain[:-1]), plain[-1]] if len(plain) > 1 else plain)


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _change(interval: Interval) -> str:
    return f"{percent(interval.estimate)} ({percent(interval.low)} to {percent(interval.high)})"


def _share(part: float, whole: float = 1.0) -> str:
    return f"{100 * part / whole if whole else 0.0:.1f} %"
