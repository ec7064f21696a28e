"""Order by references."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keikaku_snapshots.postgres.ordering import order_by_references

_pairs = st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)))


def test_parents_come_first_and_ties_go_by_name() -> None:
    """The order is the same for the same schema."""
    order, cycles = order_by_references("dcba", {("a", "c"), ("b", "c")})

    assert order == ["c", "a", "b", "d"]
    assert cycles == []


def test_a_circle_is_reported_and_breaks_at_the_reference_that_may_be_null() -> None:
    """Soft references give way first."""
    order, cycles = order_by_references("ab", {("a", "b")}, {("b", "a")})

    assert order == ["b", "a"]
    assert cycles == [["a", "b"]]


def test_a_chain_of_thousands_needs_no_recursion() -> None:
    """Python's stack ends at a thousand calls."""
    order, _ = order_by_references(range(5000), {(number, number + 1) for number in range(4999)})

    assert order[0] == 4999


@given(_pairs, _pairs)
def test_everything_outside_a_circle_is_in_order(
    hard: set[tuple[int, int]], soft: set[tuple[int, int]]
) -> None:
    """A circle elsewhere spoils nothing."""
    order, cycles = order_by_references(range(9), hard, soft)
    group = {node: number for number, cycle in enumerate(cycles) for node in cycle}

    assert sorted(order) == list(range(9))
    for child, parent in hard | soft:
        if child != parent and (child not in group or group.get(child) != group.get(parent)):
            assert order.index(parent) < order.index(child)
