"""What the original left of whole texts, real tokenizers included, through alignment, files and fusion."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.recipe import Recipe
from fusion_core.alignment import Pair
from fusion_core.min_edit import MinEdit
from fusion_core.types import Scored, TokenDist
from tasks.formats.shards import read_aligned, read_fused, read_scored, write_aligned, write_fused, write_scored
from tests.golden.alignments import _map, _Sides, _tokens

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
FILES = sorted(GOLDEN.glob("align_*.json"))


@pytest.mark.skipif(not FILES, reason=f"no golden files at {GOLDEN}")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_rows_become_the_originals_targets(path: Path, tmp_path: Path) -> None:
    content, arrays = json.loads(path.read_text(encoding="utf-8")), np.load(path.with_suffix(".npz"))
    table = {int(token): entry for token, entry in content["blend_token_table"].items()}
    sides = _Sides.read(content, table, path.parent)
    source, target = (_tokens(content["samples"], side) for side in ("blend_ids", "base_ids"))
    recipe = Recipe.model_validate(
        {
            "reference": True,
            "target": {"name": "base", "model": {"kind": "local", "path": "base"}},
            "sources": [{"name": "blending", "model": {"kind": "local", "path": "blending"}}],
            "corpus": {"documents": [{"kind": "files", "paths": ["*.txt"]}]},
            "alignment": {"kind": "min_edit_dtw", "first_marker": content["blending_tokenizer_is_gptneox_class"]},
        }
    )
    nll = torch.rand(len(source.ids), generator=torch.Generator().manual_seed(0))
    write_scored(tmp_path, Scored(source, _keep(arrays, sides.source.size), nll))
    assert isinstance(recipe.vocab_mapping, MinEdit)
    vocab_map = _map(sides, recipe.vocab_mapping, {token: entry[2] for token, entry in table.items()})
    aligned = recipe.alignment(read_scored(tmp_path), target, Pair(sides.source, sides.target, vocab_map))
    write_aligned(tmp_path, aligned)
    write_fused(tmp_path, recipe.fusion([read_aligned(tmp_path)], target))
    found = read_fused(tmp_path).dist

    offsets, ids = (torch.from_numpy(arrays[f"soft_{name}"]).long() for name in ("row_off", "indices"))
    logits = torch.from_numpy(arrays["soft_logits"]).bfloat16()
    assert torch.equal(found.row_offsets, offsets)
    assert torch.equal(found.ids, ids)
    widths = offsets.diff()
    for width in widths.unique().tolist():  # rows of one width at a time, softmax in bf16
        entries = (widths.repeat_interleave(widths) == width).nonzero().view(-1, width)
        assert torch.equal(found.logprobs[entries].exp().bfloat16(), logits[entries].softmax(1))


def _keep(arrays: "np.lib.npyio.NpzFile", vocab_size: int) -> TokenDist:
    """The stored logits of the source as reference extraction leaves them, nothing being known of the rest."""
    logits = torch.from_numpy(arrays["blend_logits"]).bfloat16().double()
    rows, width = logits.shape
    nothing = torch.full((rows,), -torch.inf, dtype=torch.float64)
    ids = torch.from_numpy(arrays["blend_indices"]).long().flatten()
    return TokenDist(torch.arange(rows + 1) * width, ids, logits.log_softmax(1).flatten(), nothing, nothing, vocab_size)
