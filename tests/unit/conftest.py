"""What the tests without a server share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = Path("/dev/shm")


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where the system has one, else on the disk.

    For tests that make, sync and kill thousands of times: processes die in them, not the machine, so
    what a sync brings to the disk is not their subject.
    """
    if not (_MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="keikaku-test-", dir=_MEMORY) as path:
        yield Path(path)
