"""The part of the pytest plugin that knows performance tests; called by its hooks.

::

    @pytest.mark.performance(scale="medium")
    def test_the_morning_run(): ...

``pytest -m performance`` runs these tests; those of a larger scale than ``PERF_TEST_SCALE`` are
skipped with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.errors import UnknownScaleError
from keikaku_snapshots.perf.scales import reason_to_skip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pytest

#: The name that ``-m`` takes.
MARKER = "performance"


def register_marker(config: pytest.Config) -> None:
    """Make the marker known; for the hook ``pytest_configure``.

    Args:
        config: The run's configuration.
    """
    config.addinivalue_line(
        "markers",
        f'{MARKER}(scale="small"): measures performance; a larger scale than PERF_TEST_SCALE is skipped',
    )


def skip_larger_scales(items: Iterable[pytest.Item], environment: Mapping[str, str] | None = None) -> None:
    """Skip the tests of larger scales than ``PERF_TEST_SCALE``; for ``pytest_collection_modifyitems``.

    The mark nearest to the test counts: one of a function hides that of its module.

    Args:
        items: What was collected.
        environment: Where ``PERF_TEST_SCALE`` is looked up; the process's own if None.

    Raises:
        pytest.UsageError: A mark or the variable names an unknown scale.
    """
    import pytest

    for item in items:
        mark = item.get_closest_marker(MARKER)
        if mark is None:
            continue
        try:
            reason = reason_to_skip(_scale_of(mark), environment)
        except UnknownScaleError as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from error
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _scale_of(mark: pytest.Mark) -> str:
    given = mark.kwargs.get("scale", mark.args[0] if mark.args else "small")
    if set(mark.kwargs) - {"scale"} or len(mark.args) > 1:
        raise UnknownScaleError(
            f"the mark {MARKER} takes one argument, the scale", found=f"{mark.args} {mark.kwargs}"
        )
    return str(given)
