"""A first recipe for given models, as commented YAML."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml

from fusion_core.spec import Spec
from tasks.corpus import Files, HubDataset
from tasks.models.folders import HubModel, LocalModel
from tasks.models.hub import check_repo_id, check_revision

_RECIPE = """\
# What is fused into what, on which text, and how. `llm-fuse plan FILE` says what a run needs, `llm-fuse run FILE`
# runs it; both take `--set path.to.field=value`. Fields that aren't named here have defaults.
name: {name}

# The model that learns.
target:
{target}

# The models that it learns from, in any number. Names are for tables and the report.
sources:
{sources}

# The text that all of them read: files, a data set of the hub, or both.
corpus:
  documents:
{documents}
  max_bytes: 2046          # longer documents are cut; fits windows of 2,048 tokens even at one token per byte
  short_documents: drop
  shard_bytes: 4000000     # a shard is what is cached, retried and computed in parallel
  # max_documents: 10000   # for a first try

# What is kept of each model's distributions: the k most likely tokens, and the mass of all others.
extraction:
  mode: {{kind: top_k, k: 10}}
  engine: {{kind: transformers, dtype: bfloat16}}

# How the sources' distributions become one teacher.
# Each source token stands for the target's token that would follow here; rows of two tokenizers meet where both end at
# the same byte, and what goes on past it is accounted for. Less work and a little less gain: byte_piece, plain
# byte_boundary.
vocab_mapping: {{kind: canonical}}
alignment: {{kind: byte_boundary, cover: 1, lookahead: 2, bridge: true}}
fusion: {{kind: min_ce}}               # each document's teacher is the model that predicts it best
target_as_teacher: false             # true: the target's own distributions are one of the candidates

# The objective is lm_weight * language modelling + (1 - lm_weight) * divergence from the teacher.
training:
  lm_weight: 0.9
  divergence: {{kind: soft_cross_entropy, tail: renormalise}}  # or bucket: all others as one token
  epochs: 1
  learning_rate: 1.0e-5
  batch_sequences: 128
  dtype: bfloat16

# What all models are measured on, in bits per byte. Take text that none of them has seen.
evaluation:
  corpus:
    documents:
{held_out}
    max_bytes: 2046
    short_documents: drop
  spec: {{dtype: bfloat16}}
  baselines:
    - {{name: CLM only, teacher: none}}  # the same training without the sources

# min_shards: 1.0                    # share of all shards that must succeed
"""


def write_starter(target: str, sources: Sequence[str], texts: Sequence[str] = (), held_out: Sequence[str] = ()) -> str:
    """A recipe that fuses `sources` into `target`, each a hub id or a model folder, as YAML with comments.

    texts, held_out: files or globs to learn from and to measure on; where there are none, MiniPile's splits.
    Raises `ValueError` for a model that is neither a folder nor a possible hub id, and without sources.
    """
    if not sources:
        raise ValueError(
            "init: expected at least one source model, found none; name the models that the target learns from"
        )
    models = [_model(spec) for spec in (target, *sources)]
    names = distinct_names([target, *sources])
    entries = [f"name: {name}\nmodel: {model}" for name, model in zip(names, models, strict=True)]
    return _RECIPE.format(
        name=f"{names[0]}-fused"[:80],
        target=textwrap.indent(entries[0], "  "),
        sources="\n".join("  - " + textwrap.indent(entry, "    ").lstrip() for entry in entries[1:]),
        documents=textwrap.indent(_documents(texts, "train"), "    "),
        held_out=textwrap.indent(_documents(held_out, "test"), "      "),
    )


def model_of(text: str) -> HubModel | LocalModel:
    """The model that a person means: a folder where there is one or the text looks like a path, else a hub id.

    Raises `ValueError` for a text that can be neither.
    """
    if Path(text).expanduser().is_dir() or text.startswith((".", "/", "~")):
        return LocalModel(path=text)
    repo, _, revision = text.partition("@")
    return HubModel(id=check_repo_id(repo), revision=check_revision(revision or "main"))


def documents_of(paths: Sequence[str]) -> Files:
    """Text files, JSONL or Parquet, told by the ending of the first path."""
    suffix = PurePosixPath(paths[0]).suffix
    kind: Literal["text", "jsonl", "parquet"] = (
        "jsonl" if suffix == ".jsonl" else "parquet" if suffix == ".parquet" else "text"
    )
    return Files(paths=tuple(paths), format=kind)


def _model(text: str) -> str:
    return _flow_style(model_of(text))


def _documents(paths: Sequence[str], split: str) -> str:
    source: Spec = documents_of(paths) if paths else HubDataset(id="JeanKaddour/minipile", split=split)
    return f"- {_flow_style(source)}"


def _flow_style(spec: Spec) -> str:
    """One line of YAML with the kind and whatever differs from its default."""
    plain = {"kind": spec.model_dump()["kind"], **spec.model_dump(mode="json", exclude_defaults=True)}
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()


def distinct_names(models: Sequence[str]) -> list[str]:
    """A short name for each model, from the end of its id or path; numbered where two are alike."""
    names: list[str] = []
    for model in models:
        last = model.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]
        name = re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.")[:50] or "model"
        alike = sum(known == name or known.startswith(f"{name}-no") for known in names)
        names.append(f"{name}-no{alike + 1}" if alike else name)
    return names
