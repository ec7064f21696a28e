"""What the pytest plugin costs those who do not use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from keikaku_snapshots.config import DATABASE_VARIABLES

#: What pytest has loaded anyway is loaded first; the rest is ours.
_CODE = """
import sys, pytest, _pytest.terminal, _pytest.warnings
before = set(sys.modules)
import keikaku_snapshots.pytest_plugin
print(*sorted(set(sys.modules) - before))
"""
_OURS = {
    "keikaku_snapshots",
    "keikaku_snapshots.pytest_plugin",
    "keikaku_snapshots.testing",
    "keikaku_snapshots.testing.options",
}


def test_a_suite_that_does_not_use_the_plugin_loads_four_small_modules() -> None:
    """No driver, no SQLAlchemy, nothing else of ours: time would not tell it as surely as this list.

    The time is measured in docs/design.md.
    """
    result = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)

    assert set(result.stdout.split()) == _OURS


def test_a_run_that_does_not_use_the_plugin_loads_no_more_than_that(tmp_path: Path) -> None:
    """Hooks and markers of the plugin load nothing either, in a run from its beginning to its end."""
    (tmp_path / "test_sample.py").write_text(
        "import sys, pathlib\n"
        "def test_it(): pass\n"
        "def test_loaded():\n"
        "    ours = (name for name in sys.modules if name.startswith(('keikaku', 'psycopg', 'sqlalchemy')))\n"
        "    pathlib.Path('loaded').write_text(' '.join(ours))\n",
        encoding="utf-8",
    )

    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], cwd=tmp_path, check=True
    )

    assert set((tmp_path / "loaded").read_text(encoding="utf-8").split()) == _OURS


def test_the_workflow_for_github_names_what_the_plugin_reads() -> None:
    """The example is YAML, names the server by a variable that is read, and installs an extra of ours."""
    text = Path(__file__).parents[2].joinpath("examples", "github-actions.yml").read_text(encoding="utf-8")

    job = yaml.safe_load(text)["jobs"]["pytest"]

    assert set(job["env"]) <= set(DATABASE_VARIABLES)
    assert any("keikaku_snapshots[embedded]" in step.get("run", "") for step in job["steps"])
