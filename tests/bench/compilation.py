"""What a kernel's first call costs: where nothing is compiled yet, and in a process that finds it on disk."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch

from fusion_core.alignment import Pair
from fusion_core.alignment.projection import project_rows
from fusion_core.distributions import TopK
from fusion_core.distributions.mixing import mix
from fusion_core.dtw import Sequences, warp
from fusion_core.edit_distance import edit_distances
from fusion_core.nearest_string import find_nearest
from fusion_core.types import TokenDist, VocabMap
from fusion_core.vocabulary import Vocabulary
from tests.bench.rows import Action, Row, time_once

_SIZE = 8


def rows() -> Iterator[Row]:
    """One row per family of kernels; only the very first run on a machine pays what stands under `ours`."""
    for name, action in _CALLS.items():
        with TemporaryDirectory() as cache:
            compiling, reading = _time_first(action, cache), _time_first(action, cache)
        yield Row(f"first call, {name}", compiling, "first call that finds it compiled", reading, float("nan"), "")


def _time_first(action: Action, cache: str) -> float:
    """Seconds of the first call in a new process that keeps what it compiles in the folder `cache`."""
    with (
        mock.patch.dict(os.environ, NUMBA_CACHE_DIR=cache),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(time_once, action).result()


def _measure_words() -> None:
    edit_distances(["fuse"], ["fusion"])


def _find_words() -> None:
    find_nearest(["fuse"], ["fusion"])


def _warp_words() -> None:
    text = Sequences(["a", "b"], np.array([0, 1, 0]), np.array([0, 3]))
    warp(text, text)


def _project_rows() -> None:
    letters = Vocabulary(tuple(bytes([97 + i]) for i in range(_SIZE)), {}, adds_prefix_space=False, normalizes=False)
    project_rows(_draw_rows(), torch.arange(3), Pair(letters, letters, VocabMap(torch.arange(_SIZE), _SIZE)))


def _mix_rows() -> None:
    mix([_draw_rows(), _draw_rows()], torch.full((2, 3), 0.5))


def _draw_rows() -> TokenDist:
    return TopK(k=4)(torch.randn(3, _SIZE), _SIZE)


_CALLS: dict[str, Action] = {
    "edit distances": _measure_words,
    "nearest strings": _find_words,
    "time warping": _warp_words,
    "projecting rows": _project_rows,
    "mixing rows": _mix_rows,
}
