"""Words of options: a hyphen and an underscore are the same."""

from __future__ import annotations

import click
import pytest

from keikaku_snapshots.cli.words import Words


@pytest.mark.parametrize(
    ("typed", "taken"), [("in-place", "in_place"), ("in_place", "in_place"), ("test_data", "test-data")]
)
def test_a_hyphen_and_an_underscore_are_the_same(typed: str, taken: str) -> None:
    """The library says ``test_data`` and ``in_place``; nobody knows by heart which the option wants."""
    assert Words(["in_place", "test-data"]).convert(typed, None, None) == taken


def test_other_words_are_refused() -> None:
    """Nothing else becomes equal."""
    with pytest.raises(click.BadParameter):
        Words(["in_place"]).convert("inplace", None, None)
