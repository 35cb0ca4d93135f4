"""The runner of golden files finds what differs, and never takes silence for success."""

import json
from pathlib import Path

import numpy as np
import pytest

from fusion_core.edit_distance import edit_distances
from tests.golden.__main__ import main

BASE = ("</s>", "▁", "a", "b", "▁a", "▁ab", "bc")
BLENDING = ("<end>", "a", "Ġa", "Ġabc", "b", "Ġb")


def spell(pieces):
    return [piece.replace("Ġ", "▁") for piece in pieces]


def vocab_map():
    """A small map by the table of all distances, in the layout of the golden files."""
    rows = []
    for piece, name, row in zip(BLENDING, spell(BLENDING), edit_distances(spell(BLENDING), BASE), strict=True):
        rows.append([piece, name, BASE[int(row.argmin())], int(row.min()), int((row == row.min()).sum())])
    return {
        "base": "ours",
        "blending": "theirs",
        "base_marker": "▁",
        "blending_marker": "Ġ",
        "base_tokens": BASE,
        "blending_tokens": BLENDING,
        "columns": ["blending_token", "tmp_x", "mapped_base_token", "edit_distance", "n_base_tokens_at_that_distance"],
        "rows": rows,
        "mapping_len": len(BLENDING),
        "n_identity": 3,
    }


def alignment():
    """One text worked out by hand, and its arrays: `▁a` is matched twice, `▁ab` with `b`, the ends with each other."""
    sample = {
        "base_ids": [4, 5, 0],
        "base_tokens": ["▁a", "▁ab", "</s>"],
        "blend_ids": [1, 2, 4, 0],
        "blend_tokens": ["a", "Ġa", "b", "<end>"],
        "dtw_matches": [0, 0, 1, 0, 2, 1, 3, 2],
        "dtw_cost": 4.0,
    }
    table = {
        str(i): [piece, -1, BASE.index(row[2])]
        for i, (piece, row) in enumerate(zip(BLENDING, vocab_map()["rows"], strict=True))
    }
    for token, base_id in ((1, 2), (2, 4), (4, 3)):
        table[str(token)][1] = base_id
    content = {
        "base": "ours",
        "blending": "theirs",
        "base_marker": "▁",
        "blending_marker": "Ġ",
        "blending_tokenizer_is_gptneox_class": False,
        "samples": [sample],
        "blend_token_table": table,
    }
    arrays = {
        "blend_off": np.array([0, 4]),
        "base_off": np.array([0, 3]),
        "blend_indices": np.tile([0, 5, 1], (4, 1)),
        "blend_logits": np.tile(np.array([3.0, 1.0, 0.5], np.float16), (4, 1)),
        "hard_row_off": np.array([0, 1, 2, 3]),
        "hard_indices": np.array([4, 5, 0]),
        "hard_logits": np.ones(3, np.float32),
        "soft_row_off": np.array([0, 1, 2, 5]),
        "soft_indices": np.array([4, 5, 0, 1, 2]),
        "soft_logits": np.array([1.0, 1.0, 3.0, 1.0, 0.5], np.float32),
    }
    return content, arrays


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def run(folder, capsys):
    status = main([str(folder)])
    return status, capsys.readouterr().out


def test_a_right_file_passes(tmp_path, capsys):
    write(tmp_path, "vocab_map_small_theirs__to__ours.json", vocab_map())
    status, out = run(tmp_path, capsys)
    assert status == 0, out
    assert "7 cases, 0 mismatches" in out


@pytest.mark.parametrize("column", range(5))
def test_each_altered_value_is_found(column, tmp_path, capsys):
    content = vocab_map()
    value = content["rows"][3][column]
    content["rows"][3][column] = value + 1 if isinstance(value, int) else value + "x"
    write(tmp_path, "vocab_map_small_theirs__to__ours.json", content)
    status, out = run(tmp_path, capsys)
    assert status == 1
    assert "1 mismatches" in out


@pytest.mark.parametrize("total", ["mapping_len", "n_identity"])
def test_an_altered_total_is_found(total, tmp_path, capsys):
    write(tmp_path, "vocab_map_small_theirs__to__ours.json", vocab_map() | {total: 99})
    assert run(tmp_path, capsys)[0] == 1


def test_an_empty_folder_is_a_failure(tmp_path, capsys):
    assert run(tmp_path, capsys)[0] == 1
    assert main([str(tmp_path / "nowhere")]) == 1


def test_an_unknown_file_is_a_failure(tmp_path, capsys):
    write(tmp_path, "vocab_map_small_theirs__to__ours.json", vocab_map())
    write(tmp_path / "deeper", "other.json", {})
    status, out = run(tmp_path, capsys)
    assert status == 1
    assert "other.json: unknown kind of file" in out


def test_a_file_without_cases_is_a_failure(tmp_path, capsys):
    write(tmp_path, "packing.json", [])
    status, out = run(tmp_path, capsys)
    assert status == 1
    assert "0 cases" in out


def test_a_broken_file_is_a_failure_and_the_others_are_checked(tmp_path, capsys):
    write(tmp_path, "align_small_x__to__y.json", {})
    write(tmp_path, "vocab_map_small_theirs__to__ours.json", vocab_map())
    status, out = run(tmp_path, capsys)
    assert status == 1
    assert "can't be checked" in out
    assert "7 cases, 0 mismatches" in out


def test_a_companion_without_its_file_is_a_failure(tmp_path, capsys):
    write(tmp_path, "vocab_map_small_theirs__to__ours.json", vocab_map())
    np.savez(tmp_path / "align_small_theirs__to__ours.npz", blend_off=np.zeros(1))
    assert run(tmp_path, capsys)[0] == 1


def test_a_missing_vocabulary_is_a_failure(tmp_path, capsys):
    content = {key: value for key, value in vocab_map().items() if not key.endswith("_tokens")}
    write(tmp_path, "vocab_map_real_theirs__to__ours.json", content)
    status, out = run(tmp_path, capsys)
    assert status == 1
    assert "'ours'" in out


def write_alignment(folder, content, arrays, with_vocabularies=True):
    write(folder, "align_small_theirs__to__ours.json", content)
    np.savez(folder / "align_small_theirs__to__ours.npz", **arrays)
    if with_vocabularies:
        write(folder, "vocab_map_small_theirs__to__ours.json", vocab_map())


@pytest.mark.parametrize("with_vocabularies", [True, False])
def test_a_right_alignment_passes_with_and_without_its_vocabularies(with_vocabularies, tmp_path, capsys):
    write_alignment(tmp_path, *alignment(), with_vocabularies)
    status, out = run(tmp_path, capsys)
    assert status == 0, out
    assert "16 cases, 0 mismatches" in out


@pytest.mark.parametrize("key", ["base_off", "hard_row_off", "hard_indices", "soft_indices", "soft_logits"])
def test_each_altered_array_is_found(key, tmp_path, capsys):
    content, arrays = alignment()
    arrays[key] = arrays[key].copy()
    arrays[key][-1] += 1
    write_alignment(tmp_path, content, arrays)
    assert run(tmp_path, capsys)[0] == 1


def test_an_altered_path_cost_or_map_is_found(tmp_path, capsys):
    for number, change in enumerate(("dtw_matches", "dtw_cost", "table")):
        content, arrays = alignment()
        if change == "dtw_matches":
            content["samples"][0][change][1] += 1
        elif change == "dtw_cost":
            content["samples"][0][change] += 1
        else:
            content["blend_token_table"]["3"][2] = 4
        write_alignment(tmp_path / str(number), content, arrays)
        status, out = run(tmp_path / str(number), capsys)
        assert status == 1
        assert "16 cases, 1 mismatches" in out


def test_the_originals_own_outputs_are_reproduced(capsys):
    folder = Path(__file__).parents[2] / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden files at {folder}")
    status, out = run(folder, capsys)
    assert status == 0, out
