"""The catalogues of faults and of what users ask for, and the tests that prove them, belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault_cases import CASES, LATER, cases_tested
from tests.peer_cases import ASKS, asks_tested

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("number", sorted(set(CASES) - LATER))
def test_every_fault_of_a_built_part_has_a_test(number: int) -> None:
    """A fault that we know and do not test comes back."""
    assert cases_tested(TESTS)[number], f"no test names FAULTS {number}: {CASES[number]}"


def test_tests_name_only_known_faults() -> None:
    """A number that is not in the catalogue is a slip of the pen."""
    assert set(cases_tested(TESTS)) == set(CASES)


@pytest.mark.parametrize("number", sorted(ASKS))
def test_every_ask_of_users_of_other_tools_has_a_test(number: int) -> None:
    """What is promised better than elsewhere is shown."""
    assert asks_tested(TESTS)[number], f"no test names PEERS {number}: {ASKS[number]}"


def test_tests_name_only_known_asks() -> None:
    """A number that is not in the catalogue is a slip of the pen."""
    assert set(asks_tested(TESTS)) == set(ASKS)
