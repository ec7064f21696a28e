"""A checksum of what a patch does: its class, its bases, and what they use of their modules."""

from __future__ import annotations

import hashlib
import inspect
import sys
import threading
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.patches.definition import Patch

_DECLARED = ("table", "key", "where", "set", "reads", "writes", "target_tables", "acknowledges")
# Python 3.11 parses in one thread at a time only, or raises SystemError (CPython 106905).
_PARSER = threading.Lock()
_PLAIN = (str, int, float, bool, bytes, tuple, frozenset, type(None))


def source_hash(patch: Patch | type[Patch]) -> str:
    """Return the SHA-256 of a patch's source and version.

    Functions, classes and plain constants of the same modules that the patch
    uses by name belong to it; libraries do not.

    Args:
        patch: The patch or its class.

    Returns:
        64 hex digits; equal for equal sources.
    """
    patch_class = patch if isinstance(patch, type) else type(patch)
    parts = [f"{patch_class.name} {patch_class.version}"]
    seen: set[str] = set()
    for base in patch_class.__mro__:
        if base.__module__ not in {"builtins", "keikaku_snapshots.patches.definition"}:
            parts.extend(_parts(base, seen))
    parts.extend(f"{attribute}={getattr(patch_class, attribute, None)!r}" for attribute in _DECLARED)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _parts(thing: Any, seen: set[str]) -> Iterator[str]:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if name in seen:
        return
    seen.add(name)
    yield _text(thing)
    known = vars(sys.modules[thing.__module__]) if thing.__module__ in sys.modules else {}
    for used in sorted(_names(thing)):
        value = known.get(used)
        if isinstance(value, FunctionType | type) and value.__module__ == thing.__module__:
            yield from _parts(value, seen)
        elif used in known and isinstance(value, _PLAIN):
            yield f"{used}={value!r}"


def _text(thing: Any) -> str:
    try:
        with _PARSER:
            return inspect.getsource(thing)
    except (OSError, TypeError):
        # Typed in at a prompt: there is no source, but there is what the interpreter runs.
        return "\0".join(f"{code.co_code.hex()} {code.co_consts!r}" for code in _codes(thing))


def _codes(thing: Any) -> Iterator[CodeType]:
    functions = vars(thing).values() if isinstance(thing, type) else [thing]
    for function in functions:
        inner = function.fget if isinstance(function, property) else getattr(function, "__func__", function)
        code = getattr(inner, "__code__", None)
        if isinstance(code, CodeType):
            yield from _with_inner(code)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _names(thing: Any) -> set[str]:
    return {name for code in _codes(thing) for name in code.co_names}
