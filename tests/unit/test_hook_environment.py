"""The environment of a hook never names the live database."""

from __future__ import annotations

import pytest

from keikaku_snapshots import DatabaseURL
from keikaku_snapshots.snapshots.hook_environment import hook_environment, names_database

LIVE = DatabaseURL.parse("postgresql://owner:S3cretCanary@db.example:5433/app")
NEW = LIVE.with_database("keikaku_new_1")


def env_of(**inherited: str) -> dict[str, str]:
    """What a hook gets."""
    environment = hook_environment(LIVE, NEW, inherited)
    environment.remove()
    return environment.env


@pytest.mark.parametrize(
    ("value", "turned"),
    [
        ("postgresql://u:p@h/app", "postgresql://u:p@h/keikaku_new_1"),
        ("postgres://u:p@h:6432/app?sslmode=require", "postgres://u:p@h:6432/keikaku_new_1?sslmode=require"),
        ("postgresql+asyncpg://u:p%40@h/app?ssl=require", "postgresql+asyncpg://u:p%40@h/keikaku_new_1?ssl=require"),
        ("postgresql:///app?host=/run/app", "postgresql:///keikaku_new_1?host=/run/app"),
        ("postgresql://h?dbname=app&user=u", "postgresql://h?dbname=keikaku_new_1&user=u"),
        ("postgresql://u:a/b?c@h/app", "postgresql://u:a/b?c@h/keikaku_new_1"),
        ("postgresql://h/app?options=a@b", "postgresql://h/keikaku_new_1?options=a@b"),
        ("postgresql://u:a#b@h/app", "postgresql://u:a#b@h/keikaku_new_1"),
        ("postgresql://u:it's@h/app", "postgresql://u:it's@h/keikaku_new_1"),
        ("postgresql://u@[::1]:5432/%61pp", "postgresql://u@[::1]:5432/keikaku_new_1"),
        ("jdbc:postgresql://h/app?user=u", "jdbc:postgresql://h/keikaku_new_1?user=u"),
        ('{"a": "postgresql://h/app", "b": 1}', '{"a": "postgresql://h/keikaku_new_1", "b": 1}'),
        ("host=h dbname=app user=app", "host=h dbname='keikaku_new_1' user=app"),
        ("host=h dbname = 'app'", "host=h dbname = 'keikaku_new_1'"),
        ("postgresql://app:app@app/app", "postgresql://app:app@app/keikaku_new_1"),
        ("postgresql://h/app,postgresql://h/app2", "postgresql://h/keikaku_new_1,postgresql://h/app2"),
    ],
)  # fmt: skip
def test_every_spelling_of_the_live_database_is_turned(value: str, turned: str) -> None:
    """B7: user, host, driver and parameters stay, so the hook acts as the role that it always does."""
    assert env_of(ANY_NAME=value)["ANY_NAME"] == turned
    assert names_database(value, "app") == (value != turned)


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://h/application",
        "postgresql://app/other",
        "mysql://h/app",
        "/srv/app",
        "app",
        "dbname=apple",
    ],
)
def test_what_names_something_else_stays(value: str) -> None:
    """B7: a hook is the user's own command and keeps the user's environment."""
    assert env_of(ANY_NAME=value)["ANY_NAME"] == value
    assert not names_database(value, "app")


@pytest.mark.parametrize("name", ["POSTGRES_DB", "DB_NAME", "DB_DATABASE", "DBNAME", "DJANGO_DATABASE_NAME"])
def test_a_variable_with_the_bare_name_is_turned(name: str) -> None:
    """B7: as compose files and frameworks give it."""
    assert env_of(**{name: "app"})[name] == "keikaku_new_1"
    assert env_of(**{name: "other"})[name] == "other"


def test_the_usual_urls_always_name_the_new_database() -> None:
    """B7: also where they named a third one; the test database only where the caller has the variable."""
    env = env_of(DATABASE_URL="postgresql+asyncpg://h/third", TEST_DATABASE_URL="sqlite:///x")
    for name in ("KEIKAKU_DB_URL", "DATABASE_URL", "TEST_DATABASE_URL"):
        assert DatabaseURL.parse(env[name]) == NEW
    assert "PERFORMANCE_TEST_DATABASE_URL" not in env


def test_no_inherited_variable_of_libpq_stays() -> None:
    """FAULTS 11: and our own configuration of hooks does not begin again in a hook."""
    env = env_of(
        PGHOSTADDR="192.0.2.1", PGSERVICE="app", PSQLRC="x", PG_BIN="/opt/pg", KEIKAKU_AFTER_RESTORE="x"
    )
    assert {"PGHOSTADDR", "PSQLRC", "KEIKAKU_AFTER_RESTORE"} & set(env) == set()
    assert env["PGSERVICE"] == "keikaku"  # a file of ours, with what has no variable
    assert (env["PG_BIN"], env["PGHOST"], env["PGPORT"]) == ("/opt/pg", "db.example", "5433")
    assert (env["PGDATABASE"], env["PGUSER"]) == ("keikaku_new_1", "owner")
    assert "S3cretCanary" not in {value for name, value in env.items() if name.startswith("PG")}


def test_the_passwords_of_all_urls_are_known_for_redaction() -> None:
    """FAULTS 31: what a hook prints may hold the password of another role."""
    environment = hook_environment(LIVE, NEW, {"MIGRATIONS": "postgresql://migrator:0therSecret@h/app"})
    environment.remove()
    text = "S3cretCanary 0therSecret"
    for url in environment.urls:
        text = url.redact(text)
    assert text == "*** ***"
