"""Files that we did not write: by hand, by other programs, with intent. Nothing of them runs unseen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    CreateFailedError,
    RestoreFailedError,
    SnapshotCorruptError,
    UnsafeRestoreError,
)
from keikaku_snapshots.postgres.tools import find_tools
from tests.fakes import make_fake, write
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server

COUNT = "SELECT count(*) FROM children"
README = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        schemas.run(database, CHANGED)
        yield manager


def by_hand(manager: SnapshotManager, change: dict[bytes, bytes], name: str = "hand") -> Path:
    """Put a changed copy of the dump there, without a manifest."""
    content = manager.get_snapshot("small").path.read_bytes()
    for old, new in change.items():
        assert content.count(old) >= 1
        content = content.replace(old, new, 1)
    path = manager.directory / f"{name}_v1.sql"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
@pytest.mark.parametrize(
    "attack",
    [
        "\\! touch {mark}",
        "\\o |touch {mark}",
        "\\copy parents to program 'touch {mark}'",
        "\\unrestrict `touch {mark}`",
        "\\unrestrict {key}\n\\! touch {mark}\n\\restrict {key}",
        "COPY public.parents TO PROGRAM 'touch {mark}';",
        "DO $$ BEGIN EXECUTE 'COPY public.parents TO PROGRAM ''touch {mark}'''; END $$;",
    ],
    ids=["shell", "output", "copy", "backquote", "own-key", "server", "do"],
)
def test_nothing_of_a_prepared_file_runs(
    attack: str, strategy: str, small: SnapshotManager, tmp_path: Path
) -> None:
    """FAULTS 23, 24, 25, 29: neither here nor on the server, though the role is a superuser."""
    mark = tmp_path / "never"
    tmp_path.chmod(0o777)  # the server could write it
    text = small.get_snapshot("small").path.read_bytes()
    key = text.split(b"\\restrict ", 1)[1].split(b"\n", 1)[0].decode()
    line = attack.format(mark=mark, key=key).encode() + b"\nSET client_min_messages"
    by_hand(small, {b"SET client_min_messages": line})

    with pytest.raises(SnapshotCorruptError):
        small.restore_snapshot("hand", trust=True, strategy=strategy)

    assert not mark.exists()
    assert schemas.rows_of(small.url, COUNT) == [(300,)]


def test_what_a_dump_may_run_is_what_its_role_may(owner_database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 29: a function of the dump runs while it is restored; as a plain role it reaches no program."""
    mark = tmp_path / "never"
    tmp_path.chmod(0o777)
    schemas.run(
        owner_database,
        "CREATE FUNCTION public.mark() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN\n"
        "IF current_setting('app.armed', true) IS NULL THEN\n"
        f"EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {mark}'''; END IF; RETURN 1; END $$;"
        "SET app.armed = 'no'; CREATE MATERIALIZED VIEW public.armed AS SELECT public.mark()",
    )
    assert "take snapshots only from sources you trust" in README
    with SnapshotManager(owner_database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("armed")
        with pytest.raises(RestoreFailedError, match=r"public\.armed"):
            manager.restore_snapshot("armed")
    assert not mark.exists()
    assert schemas.rows_of(owner_database, "SELECT mark FROM public.armed") == [(1,)]


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
@pytest.mark.parametrize("restricted", [True, False])
def test_no_psql_has_to_know_the_dump(
    strategy: str, restricted: bool, small: SnapshotManager, tmp_path: Path
) -> None:
    r"""PEERS 13, FAULTS 26, 27: plain files are read by the library itself.

    So it does not matter that an older psql stumbles over ``\restrict``, nor that a key put
    around from outside would refuse the dump's own: psql is not started.
    """
    fake = make_fake(tmp_path, version="16.2")
    path = by_hand(small, {})
    if not restricted:
        path.write_bytes(re.sub(rb"\\(?:un)?restrict \w+\n\n", b"", path.read_bytes()))
    with SnapshotManager(small.url, small.directory, minimum_free_mb=1, pg_bin=fake.directory) as manager:
        manager.restore_snapshot("hand", trust=True, strategy=strategy)

    assert fake.calls() == []
    assert schemas.rows_of(small.url, COUNT) == [(500,)]


def test_passwords_of_foreign_servers_are_in_the_file_and_nowhere_else(
    database: DatabaseURL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 36: the file is private and the README says what is in it; no message and no manifest has it."""
    schemas.run(
        database,
        "CREATE FOREIGN DATA WRAPPER far; CREATE SERVER there FOREIGN DATA WRAPPER far;"
        "CREATE USER MAPPING FOR postgres SERVER there OPTIONS (password 's3cret-canary')",
    )
    assert "a dump may hold passwords of foreign servers" in README
    caplog.set_level("DEBUG")
    with SnapshotManager(database, tmp_path / "s", minimum_free_mb=1) as manager:
        made = manager.create_snapshot("app")
        assert "s3cret-canary" in made.path.read_text()
        assert made.path.stat().st_mode & 0o077 == 0
        manager.restore_snapshot("app", strategy="in_place")
        assert schemas.rows_of(database, "SELECT umoptions FROM pg_user_mappings") == [
            (["password=s3cret-canary"],)
        ]
        broken = made.path.read_bytes().replace(
            b"password 's3cret-canary'", b"password 's3cret-canary', a 'b', a 'b'"
        )
        (manager.directory / "hand_v1.sql").write_bytes(broken)
        with pytest.raises(RestoreFailedError) as caught:
            manager.restore_snapshot("hand", trust=True)
    others = [path.read_text() for path in (tmp_path / "s").iterdir() if path.suffix in {".json", ".log"}]
    assert len(others) == 2
    assert not [text for text in (*others, str(caught.value), caplog.text) if "s3cret-canary" in text]


def test_an_extension_that_only_a_superuser_can_make_is_said_before(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 71: whether the server has it, and whether the role may make it, is asked first."""
    full, empty = (make_database(server, "keikaku_owner") for _ in "ab")
    with server.admin(full.database) as admin:
        admin.execute("CREATE EXTENSION vector SCHEMA public")
    schemas.run(
        full, "CREATE TABLE embeddings (v public.vector(3)); INSERT INTO embeddings VALUES ('[1,2,3]')"
    )
    with SnapshotManager(full, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("app")
    before = schemas.dump_text(server, empty)
    with SnapshotManager(empty, tmp_path, minimum_free_mb=1) as manager:
        for strategy in ("auto", "in_place"):
            with pytest.raises(
                UnsafeRestoreError, match="extension vector can only be created by a superuser"
            ):
                manager.restore_snapshot("app", strategy=strategy)
    assert schemas.dump_text(server, empty) == before
    with server.admin(empty.database) as admin:
        admin.execute("CREATE EXTENSION vector SCHEMA public")
    with SnapshotManager(empty, tmp_path, minimum_free_mb=1) as manager:
        assert manager.restore_snapshot("app").strategy == "in_place"


def test_two_dumps_of_one_state_are_different_files_and_the_same_data(small: SnapshotManager) -> None:
    """FAULTS 81: pg_dump's random key is in both; sameness is told by reading, never by the checksum."""
    first, second = (small.create_snapshot("twin") for _ in "ab")
    assert first.manifest is not None
    assert second.manifest is not None
    assert first.manifest.sha256 != second.manifest.sha256
    assert small.compare_snapshots(first, second).same
    assert first.manifest.schema_fingerprint == second.manifest.schema_fingerprint


@pytest.mark.slow
def test_a_value_too_large_for_pg_dump_is_said_with_its_table(database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 77: a row of more than 1 GB as text; the limit is PostgreSQL's, the remedy names it."""
    schemas.run(database, "CREATE TABLE films (a bytea)")
    schemas.run(database, "INSERT INTO films SELECT convert_to(repeat('x', 600000000), 'UTF8')")
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        with pytest.raises(CreateFailedError, match="too large to be dumped") as caught:
            manager.create_snapshot("films")
        assert manager.list_snapshots() == []
    assert "films" in str(caught.value)


@pytest.mark.parametrize("cut", [b"SELECT pg_catalog.setval", b"-- PostgreSQL database dump complete"])
def test_an_archive_that_was_unpacked_half_is_not_restored(
    small: SnapshotManager, tmp_path: Path, server: Server, cut: bytes
) -> None:
    """FAULTS 8: the rows would be counted and right, and the sequences and keys behind them missing."""
    small.create_snapshot("archive", format="custom")
    script = small.create_snapshot("now").path.read_bytes()
    half = script[: script.index(cut)]
    fake = make_fake(tmp_path, write(half), version=find_tools(server.major).version)
    with (
        SnapshotManager(small.url, small.directory, minimum_free_mb=1, pg_bin=fake.directory) as manager,
        pytest.raises(SnapshotCorruptError, match="end of the dump is missing"),
    ):
        manager.restore_snapshot("archive", strategy="swap")
    assert schemas.rows_of(small.url, COUNT) == [(300,)]


def test_a_trusted_file_can_be_tried_without_changing_anything(small: SnapshotManager) -> None:
    """`restore --dry-run --trust`: what the restore would find before it touches anything is found."""
    path = by_hand(small, {})
    with pytest.raises(SnapshotCorruptError, match=r"no usable manifest|cannot be read"):
        small.verify_snapshot("hand")
    assert small.verify_snapshot("hand", trust=True).checks == ("header and end", "every statement")
    path.write_bytes(path.read_bytes().replace(b"SET client_min", b"\\! id\nSET client_min", 1))
    with pytest.raises(SnapshotCorruptError):
        small.verify_snapshot("hand", trust=True)
    (small.directory / "rows_v1.json").write_text(json.dumps({"tables": {"parents": [{"id": 1}]}}))
    assert small.verify_snapshot("rows", trust=True).checks == ("JSON read as a whole",)
    with connect(small.url) as connection:
        assert connection.execute(COUNT).fetchone() == (300,)
