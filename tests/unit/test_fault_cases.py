"""The catalogue of faults and the tests that prove it belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault_cases import CASES, LATER, cases_tested

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("number", sorted(set(CASES) - LATER))
def test_every_fault_of_a_built_part_has_a_test(number: int) -> None:
    """A fault that we know and do not test comes back."""
    assert cases_tested(TESTS)[number], f"no test names FAULTS {number}: {CASES[number]}"


def test_tests_name_only_known_faults() -> None:
    """A number that is not in the catalogue is a slip of the pen."""
    assert set(cases_tested(TESTS)) == set(CASES)
