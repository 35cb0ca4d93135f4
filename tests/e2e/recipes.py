"""A fusion of seconds: two models of a few thousand parameters, four shards."""

from pathlib import Path
from typing import Any

from flows.recipe import Recipe
from tests.conftest import TEXTS

SHARDS = 4


def tiny_recipe(folder: Path, target: Path, source: Path) -> Recipe:
    """The recipe; its texts are written below the folder."""
    folder.mkdir(parents=True)
    lines = "".join(TEXTS[:4])
    for shard in range(SHARDS):
        learn = "".join(f"{shard} {number}: {lines}" for number in range(6))
        (folder / f"learn-{shard}.txt").write_text(learn[: 6 * len(lines)], encoding="utf-8")
    (folder / "held-out.txt").write_text("".join(line[::-1] for line in TEXTS[:4] * 4), encoding="utf-8")

    def texts(name: str) -> list[dict[str, Any]]:
        return [{"kind": "files", "paths": [str(folder / name)]}]

    size = (folder / "learn-0.txt").stat().st_size
    return Recipe.model_validate(
        {
            "name": "tiny",
            "description": "A GPT-NeoX of two layers teaches a Llama of two layers.",
            "target": {"name": "student", "model": {"kind": "local", "path": str(target)}},
            "sources": [{"name": "teacher", "model": {"kind": "local", "path": str(source)}}],
            "corpus": {"documents": texts("learn-*.txt"), "max_bytes": 64, "shard_bytes": size, "sharding": "by_size"},
            "training": {"lm_weight": 0.5, "learning_rate": 0.01, "batch_sequences": 8},
            "evaluation": {"corpus": {"documents": texts("held-out.txt"), "max_bytes": 64}},
        }
    )
