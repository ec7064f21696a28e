"""Which templates stay."""

from __future__ import annotations

from keikaku_snapshots.snapshots.templates import MAX_BYTES, Template, byte_limit, to_drop

GB = 1_000_000_000


def template(name: str, used_at: int, size_bytes: int = GB, spares: int = 0) -> Template:
    """A template whose names tell it apart."""
    text = f"2025-01-31T00:00:{used_at:02}+00:00"
    return Template(
        name, name, name, "app", size_bytes, text, text, tuple(f"{name}_{n}" for n in range(spares))
    )


def names(templates: list[Template]) -> list[str]:
    """What they are called."""
    return [one.database for one in templates]


def test_the_least_recently_used_go_beyond_the_count() -> None:
    """PEERS 9, DESIGN 5: three stay."""
    found = [template(name, used) for name, used in (("a", 4), ("b", 2), ("c", 1), ("d", 3), ("e", 5))]
    assert names(to_drop(found, "e")) == ["c", "b"]
    assert to_drop(found[:3], "a") == []


def test_the_newest_stays_whatever_its_size_and_age() -> None:
    """RECIPES 3.7: a cap below one database would make it never warm, silently."""
    found = [template("old", 1, 100 * GB), template("b", 2), template("c", 3), template("d", 4)]
    assert names(to_drop(found, "old")) == ["b", "c", "d"]
    assert to_drop(found[:1], "old") == []


def test_spares_count_as_disk() -> None:
    """DESIGN 5: bytes of all together; a small one may stay where a large one must go."""
    found = [template("a", 3, 6 * GB, 1), template("b", 2, 6 * GB, 1), template("c", 1, 7 * GB)]
    assert names(to_drop(found, "a", limit_bytes=20 * GB)) == ["b"]
    assert names(to_drop(found, "a", limit_bytes=24 * GB)) == ["c"]


def test_a_third_of_the_free_disk_at_most() -> None:
    """DESIGN 5: what templates take themselves counts as free."""
    assert byte_limit(None, []) == MAX_BYTES
    assert byte_limit(600 * GB, []) == MAX_BYTES
    assert byte_limit(6 * GB, [template("a", 1, 2 * GB), template("b", 2, GB)]) == 3 * GB
