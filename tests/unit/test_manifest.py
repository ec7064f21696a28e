"""Names, versions and manifests: what is accepted, what is refused, what survives a round trip."""

from __future__ import annotations

import json
import os
import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keikaku_snapshots.errors import InvalidNameError, SnapshotCorruptError, UsageError
from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot, check_name
from keikaku_snapshots.snapshots.names import (
    VersionOrder,
    check_version,
    data_file_name,
    next_version,
    split_data_file_name,
    version_order,
)

WHEN = datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC)
FACTS: dict[str, Any] = {
    "name": "medium_100_offices",
    "version": "20260304_050607",
    "created_at": WHEN,
    "data_file": "medium_100_offices_20260304_050607.sql",
    "size_bytes": 12,
    "sha256": "ab" * 32,
    "format": "plain",
}


def manifest(**changes: Any) -> Manifest:
    """Return a manifest with a few fields changed."""
    return Manifest(**{**FACTS, **changes})


class TestNames:
    """What a snapshot may be called."""

    @pytest.mark.parametrize(
        "name",
        [
            *["../../etc/passwd", "-rf", "a\nb", "a\n", ".", "..", "", "latest", "LATEST", "a\0b", "a" * 101],
            *[
                "é" * 128,
                "a/b",
                "app_latest",
                "a b",
                ".hidden",
                "アプリ",
                "a_20260101_000000",
                "20260101_000000_2",
            ],
        ],
    )
    def test_what_is_no_name_is_refused(self, name: str) -> None:
        """FAULTS 37: paths, options, control characters, reserved words, too long, like a version."""
        with pytest.raises(InvalidNameError) as caught:
            check_name(name)
        assert "To fix this" in str(caught.value)

    @pytest.mark.parametrize(
        "name", ["app", "a", "A.b-c_d", "0", "a" * 100, "latest_app", "app_2026", "medium_100_offices"]
    )
    def test_ordinary_names_are_accepted(self, name: str) -> None:
        """Letters, digits, dot, dash and underscore, at most 100."""
        assert check_name(name) == name

    @pytest.mark.parametrize("name", [None, 1, b"app", Path("app")])
    def test_a_name_that_is_no_text_is_a_type_error(self, name: object) -> None:
        """The wrong type is a TypeError and a ValueError, and says which type it was."""
        with pytest.raises(TypeError, match=type(name).__name__) as caught:
            check_name(name)
        assert isinstance(caught.value, ValueError)

    @pytest.mark.parametrize(
        "version", ["20261399_000000", "123", "a_b", "", "latest", "../x", "20260101_000000_1"]
    )
    def test_what_is_no_version_is_refused(self, version: str) -> None:
        """A version is a real date and time, or a label that no file name confuses."""
        with pytest.raises(UsageError):
            check_version(version)

    @given(
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        version=st.one_of(
            st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2099, 1, 1)).map(  # noqa: DTZ001 - text
                lambda moment: moment.strftime("%Y%m%d_%H%M%S")
            ),
            st.from_regex(r"[a-z][A-Za-z0-9.-]{0,10}", fullmatch=True),
        ),
        suffix=st.sampled_from(["sql", "dump", "sql.gz", "json.zst"]),
    )
    def test_a_file_name_comes_apart_as_it_was_made(self, name: str, version: str, suffix: str) -> None:
        """FAULTS 22: no two snapshots share a file name, whatever underscores and digits their names have."""
        try:
            check_name(name)
            check_version(version)
        except UsageError:
            return
        assert split_data_file_name(data_file_name(name, version, suffix)) == (name, version, suffix)


class TestVersions:
    """Which version comes next."""

    def test_a_second_one_in_the_same_second_gets_a_number(self) -> None:
        """FAULTS 90: two snapshots in one second have two names."""
        first = next_version(WHEN, None)
        second = next_version(WHEN, version_order(first))
        third = next_version(WHEN, version_order(second))

        assert [first, second, third] == ["20260304_050607", "20260304_050607_2", "20260304_050607_3"]

    def test_a_version_is_utc(self) -> None:
        """FAULTS 91: in the hour that daylight saving repeats, later still sorts after earlier."""
        berlin = ZoneInfo("Europe/Berlin")
        before = datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=0)
        after = datetime(2026, 10, 25, 2, 10, tzinfo=berlin, fold=1)

        assert next_version(before, None) == "20261025_003000"
        assert next_version(before, None) < next_version(after, None) == "20261025_011000"

    def test_a_clock_that_went_back_does_not_name_below_the_newest(self) -> None:
        """FAULTS 92: the newest version stays the one that was made last."""
        newest = version_order("20260304_050607_2")
        assert next_version(WHEN - timedelta(days=400), newest) == "20260304_050607_3"

    def test_a_naive_time_is_refused(self) -> None:
        """FAULTS 91: without a time zone nobody knows which second it was."""
        with pytest.raises(UsageError, match="time zone"):
            next_version(datetime(2026, 1, 1), None)  # noqa: DTZ001 - the point

    @given(
        moments=st.lists(
            st.datetimes(min_value=datetime(2025, 1, 1), max_value=datetime(2025, 1, 2)),  # noqa: DTZ001 - zone below
            min_size=2,
            max_size=30,
        )
    )
    def test_every_new_version_sorts_after_all_others(self, moments: list[datetime]) -> None:
        """FAULTS 90, 92: whatever the clock does."""
        newest: VersionOrder | None = None
        for moment in moments:
            made = version_order(next_version(moment.replace(tzinfo=UTC), newest))
            assert made is not None
            assert newest is None or made > newest
            newest = made


class TestManifest:
    """What is written beside the data."""

    def test_a_manifest_survives_the_round_trip(self) -> None:
        """Every field comes back equal, Japanese text readable in the file."""
        made = manifest(
            description="百事業所",
            finished_at=WHEN.astimezone(timezone(timedelta(hours=9))),
            row_counts={"public.offices": 100},
            sequences={"public.a_id_seq": [7, True]},
            extensions=[{"name": "plpgsql", "version": "1.0", "trusted": True}],
            metadata={"dataset": "keikaku", "seed": 0, "nested": {"list": [1, None, 2.5]}},
            tags=["夜間"],
            pinned=True,
        )
        text = made.to_json()

        assert Manifest.from_json(text) == made
        assert "百事業所".encode() in text
        assert hash(made) == hash(Manifest.from_json(text))

    @pytest.mark.parametrize("key", sorted(json.loads(manifest().to_json())))
    def test_any_changed_field_is_found(self, key: str) -> None:
        """B13: the manifest's checksum covers every field, itself included."""
        document = json.loads(manifest().to_json())
        document[key] = {"pinned": True, "size_bytes": 13, "row_counts": {"public.offices": 1}}.get(
            key, "changed"
        )
        with pytest.raises(SnapshotCorruptError):
            Manifest.from_json(json.dumps(document).encode())

    @pytest.mark.parametrize("length", range(0, len(manifest().to_json()) - 1, 37))
    def test_a_manifest_cut_anywhere_is_found(self, length: int) -> None:
        """FAULTS 1: half a manifest is no manifest."""
        with pytest.raises(SnapshotCorruptError):
            Manifest.from_json(manifest().to_json()[:length])

    @pytest.mark.parametrize(
        "text",
        [b"", b"null", b"[]", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b'"text"'],
    )
    def test_what_is_no_manifest_is_found(self, text: bytes) -> None:
        """No JSON, no object, doubled keys, endless nesting."""
        with pytest.raises(SnapshotCorruptError):
            Manifest.from_json(text)

    @pytest.mark.parametrize("version", [0, 2, "1", None, True])
    def test_an_unknown_format_version_says_so(self, version: object) -> None:
        """A manifest of another version is refused with both numbers, whatever its checksum says."""
        document = json.loads(manifest().to_json())
        document["format_version"] = version
        with pytest.raises(SnapshotCorruptError, match="format version") as caught:
            Manifest.from_json(json.dumps(document).encode())
        assert "this program reads 1" in str(caught.value)

    @pytest.mark.parametrize(
        "changes",
        [
            {"created_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - the point
            {"finished_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - the point
            {"data_file": "../x.sql"},
            {"data_file": ""},
            {"size_bytes": -1},
            {"sequence": 0},
            {"sha256": "AB" * 32},
            {"sha256": "ab"},
            {"name": "../x"},
            {"version": "x_y"},
            {"format": "tar"},
            {"compression": "lz4"},
        ],
    )
    def test_impossible_values_are_refused(self, changes: dict[str, Any]) -> None:
        """FAULTS 91: naive times, paths, negative sizes and unknown formats never reach a file."""
        with pytest.raises(UsageError):
            manifest(**changes)

    def test_metadata_that_json_does_not_know_is_refused(self) -> None:
        """The caller hears which kind of value it was."""
        with pytest.raises(UsageError, match="JSON") as caught:
            manifest(metadata={"when": WHEN}).to_json()
        assert "datetime" in caught.value.found


class TestSnapshot:
    """The value that people hold."""

    def snapshot(self) -> Snapshot:
        """Return one."""
        return Snapshot(Path("/s/app_v1.sql"), "app", "v1", WHEN, 12, {"public.t": 1}, manifest=None)

    def test_a_snapshot_is_a_path(self) -> None:
        """It can be passed to anything that takes a path."""
        assert os.fspath(self.snapshot()) == "/s/app_v1.sql"
        assert Path(self.snapshot()) == Path("/s/app_v1.sql")

    def test_a_snapshot_is_a_value(self) -> None:
        """Equal, hashable, picklable, frozen."""
        one = self.snapshot()
        assert one == pickle.loads(pickle.dumps(one))  # noqa: S301 - our own bytes
        assert len({one, self.snapshot()}) == 1
        with pytest.raises(AttributeError):
            one.name = "other"  # type: ignore[misc]
