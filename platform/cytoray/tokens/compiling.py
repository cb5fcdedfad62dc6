"""Compile the kernels of this package: once per machine, then read from a cache."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

Scalar = Any  # a number: compiled code mixes NumPy's and Python's

_SOURCES = ("binning.py", "coding.py", "kernels.py", "thinning.py")


def compiled(function: Kernel) -> Kernel:
    """Compile ``function`` at its first call, without Python's lock and without bounds checks.

    The machine code is cached beside the source, else in the user's cache folder. If neither can be written, each
    process compiles again. No threads are started, so a forked worker may call the function as well.
    """
    compile_with = functools.partial(numba.njit, nogil=True, boundscheck=False, error_model="numpy")
    try:
        dispatcher = cast(Any, compile_with(cache=True)(function))
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return cast(Kernel, compile_with()(function))
    # Numba recompiles only if a function's own file changes, but these call one another across files.
    cache = dispatcher._cache._cache_file
    cache._source_stamp = (cache._source_stamp, _digest_sources())
    return cast(Kernel, dispatcher)


def as_input(array: npt.NDArray[Any], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """Convert ``array`` (of numbers of ``kind``) for use in a kernel; it is copied only if necessary.

    Numba compiles a kernel again for arrays that are read-only, strided or unaligned, and arrays from files may be any
    of these: so all inputs are made contiguous and read-only.
    """
    flags = array.flags
    if array.dtype != kind or not flags.c_contiguous or not flags.aligned:
        array = np.require(array, kind, ["C", "A"])
    elif not flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


@functools.cache
def _digest_sources() -> str:
    """Return the digest of all files whose kernels call one another."""
    folder = resources.files("cytoray.tokens")
    return hashlib.sha256(b"\0".join(folder.joinpath(name).read_bytes() for name in _SOURCES)).hexdigest()
