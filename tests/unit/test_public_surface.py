"""What `import keikaku_snapshots` offers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import keikaku_snapshots

ROOT = Path(__file__).parents[2]
#: Third-party packages that the bare import must not load.
HEAVY = ("psycopg", "sqlalchemy", "pydantic", "rich", "click", "asyncpg", "yaml", "tenacity", "psutil")


def test_names_are_sorted_and_few() -> None:
    """`__all__` is sorted, without doubles, and holds at most twenty names."""
    names = keikaku_snapshots.__all__

    assert names == sorted(set(names))
    assert len(names) <= 20


@pytest.mark.parametrize("name", keikaku_snapshots.__all__)
def test_every_name_is_there(name: str) -> None:
    """Every name of `__all__` can be had, and is an object of that name."""
    value = getattr(keikaku_snapshots, name)

    if name != "__version__":
        assert value.__name__ == name


def test_dir_shows_exactly_the_public_names() -> None:
    """`dir(keikaku_snapshots)` is what the completion of a shell shows: `__all__`."""
    assert dir(keikaku_snapshots) == sorted(keikaku_snapshots.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that does not exist is an AttributeError, so `hasattr` works."""
    with pytest.raises(AttributeError, match="has no attribute 'snapshotmanager'"):
        _ = keikaku_snapshots.snapshotmanager  # type: ignore[attr-defined,unused-ignore]


def test_no_public_name_is_hidden_by_a_module() -> None:
    """No public name is also a module of the package: importing it would replace the name."""
    for name in keikaku_snapshots.__all__:
        assert importlib.util.find_spec(f"keikaku_snapshots.{name}") is None


def test_importing_the_package_loads_nothing_heavy() -> None:
    """The bare import and the errors load no third-party package."""
    code = (
        f"import sys, keikaku_snapshots, keikaku_snapshots.errors; print(set({HEAVY!r}) & set(sys.modules))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert result.stdout.strip() == "set()"


def test_the_package_is_marked_as_typed() -> None:
    """Type checkers of users read our annotations."""
    assert (ROOT / "keikaku_snapshots" / "py.typed").exists()


def test_the_changelog_knows_the_version() -> None:
    """The version in pyproject.toml has its section in CHANGELOG.md."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
