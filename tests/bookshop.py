"""A small dataset for the tests of the engine: the one of examples/own_dataset."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples" / "own_dataset"


def load() -> Any:
    """The module `bookshop`, importable by name for worker processes too."""
    if "bookshop" not in sys.modules:
        spec = importlib.util.spec_from_file_location("bookshop", FOLDER / "bookshop.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bookshop"] = module
        spec.loader.exec_module(module)
    return sys.modules["bookshop"]
