"""Functions of numbers as machine code: what all kernels of this package are compiled with."""

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code that runs without the interpreter's lock, cached on disk.

    The cache is renewed when the function's own file changes, not when that of a kernel it calls does: whoever changes
    such a kernel deletes its callers' `.nbi` in `__pycache__`. Tests have a cache per state of all kernels.
    """
    plain = inspect.unwrap(function)  # a checker of annotations may have wrapped it, which numba can't compile
    return cast(Callable[P, R], numba.njit(nogil=True, cache=True)(plain))
