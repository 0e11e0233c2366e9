"""Whether this process has initialised CUDA, without doing that and without loading anything.

``cuCtxGetCurrent`` answers ``CUDA_ERROR_NOT_INITIALIZED`` (3) before ``cuInit``, and 0 after it, also in a child that
was forked after it (where CUDA cannot be used at all). See docs/internals/gpus.md.
"""

from __future__ import annotations

import ctypes
import os
import sys

_LIBRARY = "libcuda.so.1"
_SUCCESS = 0


def cuda_is_initialised() -> bool:
    """Whether CUDA was initialised in this process, or before it was forked. False where its library is not loaded."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        # RTLD_NOLOAD: a handle of what is loaded already, by whatever path; else an error.
        library = ctypes.CDLL(_LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        context = ctypes.c_void_p()
        return int(library.cuCtxGetCurrent(ctypes.byref(context))) == _SUCCESS
    except (OSError, AttributeError):
        return False
