"""Names and marks of our databases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keikaku_snapshots.errors import InvalidNameError
from keikaku_snapshots.postgres.identity import Identity, lock_key, sibling_name
from keikaku_snapshots.postgres.settings import split_name_list


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63))
def test_a_sibling_name_fits_whatever_the_target_is_called(target: str) -> None:
    """FAULTS 39: the server cuts at 63 bytes without a word."""
    name = sibling_name("spare", target, "a" * 32)

    assert len(name.encode()) <= 63
    assert name.startswith("keikaku_spare_")


def test_long_targets_with_one_beginning_have_different_siblings() -> None:
    """What is cut off is in the hash."""
    assert sibling_name("new", "x" * 62 + "a", "t") != sibling_name("new", "x" * 62 + "b", "t")


@pytest.mark.parametrize("token", ["", "a-b", "a" * 41, "日本"])
def test_a_token_has_letters_and_digits_only(token: str) -> None:
    """It goes into a database name."""
    with pytest.raises(InvalidNameError):
        sibling_name("new", "app", token)


def test_a_mark_is_read_back() -> None:
    """The comment holds everything."""
    identity = Identity(kind="old", target='a"b', comment="日本", extra={"key": "k"})

    assert Identity.from_comment(identity.to_comment()) == identity


@pytest.mark.parametrize(
    "comment",
    [None, "", "an application", "keikaku_snapshots", "keikaku_snapshots {", "keikaku_snapshots []"],
)
def test_another_comment_is_no_mark(comment: str | None) -> None:
    """The comment decides what is ours."""
    assert Identity.from_comment(comment) is None


def test_the_lock_key_never_changes() -> None:
    """Two versions of the package on two hosts must agree."""
    assert lock_key("app") == lock_key("app") != lock_key("app2")
    assert lock_key("keikakun_test_performance") == LOCK_KEY
    assert -(2**63) <= lock_key("app") < 2**63


#: Written down from the first version.
LOCK_KEY = -57719443245454962


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        ("public", ["public"]),
        ('"$user", public', ["$user", "public"]),
        ('"a""b","c, d"', ['a"b', "c, d"]),
        ("", [""]),
    ],
)
def test_a_stored_search_path_is_split_as_the_server_does(stored: str, names: list[str]) -> None:
    """ALTER DATABASE SET search_path must not become one quoted name."""
    assert split_name_list(stored) == names
