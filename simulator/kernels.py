"""How kernels are compiled and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from numba import njit
from numba.core.caching import FunctionCache

Function = TypeVar("Function", bound=Callable[..., object])
_Cache: Any = FunctionCache


def kernels(*modules: ModuleType) -> Callable[[Function], Function]:
    """A decorator for kernels: compiled without the interpreter's lock, and kept on disk.

    Args:
        modules: what the kernels take constants, tuples and intrinsics from; when its source changes they are compiled
            anew, as they are when their own file changes.
    """
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    key = hashlib.sha256(sources).hexdigest()

    def compiled(function: Function) -> Function:
        kernel: Any = njit(nogil=True)(function)
        # Numba's own key of a kernel has part of the kernel's file only.
        cache = _Cache(function)
        key_of_function = cache._index_key
        cache._index_key = lambda *arguments: (*key_of_function(*arguments), key)
        cache._cache_file._load_index = _forgiving(cache._cache_file._load_index)
        kernel._cache = cache
        result: Function = kernel
        return result

    return compiled


def _forgiving(load_index: Callable[[], dict[Any, Any]]) -> Callable[[], dict[Any, Any]]:
    """What is kept of a kernel, or nothing if it cannot be read: it names types by modules, which may have moved."""

    def loaded() -> dict[Any, Any]:
        try:
            return load_index()
        except Exception:
            return {}

    return loaded
