"""`DatabaseURL`: read by one parser, printed without its secret, deaf to the environment."""

from __future__ import annotations

import json
import os
import pickle
import pwd
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import sqlalchemy
from hypothesis import assume, given
from hypothesis import strategies as st
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from keikaku_snapshots.errors import InvalidNameError, InvalidURLError
from keikaku_snapshots.postgres import inherited
from keikaku_snapshots.postgres import url as url_module
from keikaku_snapshots.postgres.inherited import inherited_settings_hidden
from keikaku_snapshots.postgres.url import (
    DatabaseURL,
    check_database_name,
    quote_identifier,
)

if TYPE_CHECKING:
    from pathlib import Path

parse = DatabaseURL.parse
ACCOUNT = pwd.getpwuid(os.geteuid()).pw_name
#: Any text that libpq can hold: no control characters, no surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p@h:5/d", ("h", 5, "u", "p", "d", ())),
        ("postgres://u:p@h/d", ("h", None, "u", "p", "d", ())),
        ("postgresql+psycopg://u@h/d", ("h", None, "u", None, "d", ())),
        ("postgresql+psycopg2://u@h/d", ("h", None, "u", None, "d", ())),
        ("postgresql+psycopg_async://u@h/d", ("h", None, "u", None, "d", ())),
        ("postgresql+asyncpg://u@h/d?ssl=require", ("h", None, "u", None, "d", (("sslmode", "require"),))),
        ("postgresql+asyncpg://u@h/d?ssl=true", ("h", None, "u", None, "d", (("sslmode", "require"),))),
        (
            "postgresql+asyncpg://u@h/d?ssl=verify-full",
            ("h", None, "u", None, "d", (("sslmode", "verify-full"),)),
        ),
        ("postgresql://u:p%40%2F%23%25%3A@h/d", ("h", None, "u", "p@/#%:", "d", ())),
        ("postgresql://u:p+w%2B@h/d", ("h", None, "u", "p+w+", "d", ())),
        ("postgresql://u:p?w@h/d", ("h", None, "u", "p?w", "d", ())),
        ("postgresql://u:p?ssl=1@h/d", ("h", None, "u", "p?ssl=1", "d", ())),
        ("postgresql://u:s3:cret@h/d", ("h", None, "u", "s3:cret", "d", ())),
        ("postgresql://u:@h/d", ("h", None, "u", None, "d", ())),
        ("postgresql://u@[::1]:5/d", ("::1", 5, "u", None, "d", ())),
        ("postgresql://u@/d?host=/run/pg&port=7", ("/run/pg", 7, "u", None, "d", ())),
        ("postgresql://u@%2Frun%2Fpg/d", ("/run/pg", None, "u", None, "d", ())),
        ("postgresql://u@h/%E6%97%A5%E6%9C%AC", ("h", None, "u", None, "日本", ())),
        ("postgresql:///d", ("", None, ACCOUNT, None, "d", ())),
        ("postgresql://h/d", ("h", None, ACCOUNT, None, "d", ())),
        ("  postgresql://u@h/d\n", ("h", None, "u", None, "d", ())),
    ],
)
def test_a_url_is_read_as_libpq_reads_it(text: str, expected: tuple[Any, ...]) -> None:
    """PEERS 7, FAULTS 97: dialects are taken off, ``ssl`` becomes ``sslmode``, the rest is libpq's parser."""
    url = parse(text)

    assert (url.host, url.port, url.user, url.password, url.database, url.parameters) == expected


CANARY = "canarys3cret"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://u:{CANARY}%zz@h/d",
        f"postgresql://u:{CANARY}@[::1/d",
        f"postgresql://u:p@{CANARY}@h/d",
        f"postgresql://u:p/{CANARY}@h/d",
        f"postgresql://u:1/{CANARY}@h/d",
        f"postgresql://u:{CANARY} x@h/d",
        f"postgresql://u:{CANARY}@h:{CANARY}/d",
        f"postgresql://u:{CANARY}@h:70000/d",
        f"postgresql://u:{CANARY}@h1,h2/d",
        f"postgresql://u:{CANARY}@h:1,2/d",
        f"postgresql://u:{CANARY}@h/d?hostaddr=1.1.1.1,2.2.2.2",
        f"postgresql://u:{CANARY}@h/d?nonsense=1",
        f"postgresql://u:{CANARY}@h/d?options=-c%20a={CANARY}",
        f"postgresql://u:{CANARY}@h/d?sslmode={CANARY}",
        f"postgresql://u:{CANARY}@h/d?service=x",
        f"postgresql://u:{CANARY}@h/d?replication=true",
        f"postgresql://u:{CANARY}@h/",
        f"postgresql://u:{CANARY}@h",
        f"postgresql://u:{CANARY}@h/d%0Ax",
        f"postgresql://u:{CANARY}%0A@h/d",
        f"mysql://u:{CANARY}@h/d",
        f"postgresql+pg8000://u:{CANARY}@h/d",
        f"host=h password={CANARY} dbname=d",
        f"{CANARY}",
        "",
        f"postgresql://u:{CANARY}@/d?host=/{'x' * 110}",
    ],
)
def test_a_bad_url_is_refused_and_never_repeated(text: str) -> None:
    """FAULTS 31, 41, 97, 98: libpq's own message would show the password."""
    with pytest.raises(InvalidURLError) as caught:
        parse(text)
    shown = "".join(
        str(part) + repr(part) for part in (caught.value, caught.value.__cause__, caught.value.details)
    )

    assert CANARY not in shown
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_refused_url_hides_its_cause_from_tracebacks() -> None:
    """FAULTS 31: libpq's message must not come back as "During handling of"."""
    import traceback

    try:
        parse(f"postgresql://u:{CANARY}%zz@h/d")
    except InvalidURLError as error:
        printed = "".join(traceback.format_exception(error))
    # Source lines of this test are part of a traceback; the value is not.
    assert CANARY not in printed


@pytest.mark.parametrize("url", [None, 5, b"postgresql://h/d", ["postgresql://h/d"]])
def test_what_is_no_text_is_refused(url: object) -> None:
    """The type is named."""
    with pytest.raises(InvalidURLError, match=type(url).__name__):
        parse(url)


def test_a_url_without_user_is_refused_where_the_account_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's numeric account: the error says so instead of taking $USER."""
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with pytest.raises(InvalidURLError, match="names no user"):
        parse("postgresql://h/d")


def test_inherited_variables_do_not_change_what_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 11: only the text counts."""
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGHOSTADDR", "PGSSLMODE", "USER"):
        monkeypatch.setenv(name, "7")

    assert parse("postgresql:///d") == DatabaseURL("", None, ACCOUNT, None, "d")


@pytest.mark.parametrize(
    "name", ["host=evil dbname=x", "postgresql://evil/x", "-evil", "a b", 'q"uote', "日本", "a/b"]
)
def test_a_database_name_stays_a_name(name: str) -> None:
    """FAULTS 38: a name that looks like a connection string is one string everywhere."""
    url = parse(f"postgresql://u@h/{quote(name, safe='')}")

    assert url.database == name
    assert parse(url.text) == url
    assert conninfo_to_dict(make_conninfo(**url.connect_arguments()))["dbname"] == name
    assert conninfo_to_dict(make_conninfo(**url.connect_arguments()))["host"] == "h"


@pytest.mark.parametrize("name", ["x" * 64, "日" * 22, "", "a\0b"])
def test_a_name_that_postgresql_would_cut_is_refused(name: str) -> None:
    """FAULTS 39: two names of 70 bytes can be one database."""
    with pytest.raises(InvalidNameError):
        check_database_name(name)
    with pytest.raises(InvalidNameError):
        parse("postgresql://u@h/d").with_database(name)


def test_a_name_of_63_bytes_is_kept() -> None:
    """The limit itself is allowed."""
    assert check_database_name("日" * 21) == "日" * 21


def test_a_socket_path_that_is_too_long_says_its_length(tmp_path: Path) -> None:
    """FAULTS 98: pytest's own directories are long."""
    directory = "/" + "x" * 100
    with pytest.raises(InvalidURLError, match="socket path") as caught:
        parse(f"postgresql://u@/d?host={directory}")

    assert directory in str(caught.value)
    assert str(url_module.SOCKET_PATH_LIMIT_BYTES) in str(caught.value)


def test_the_local_socket_is_the_directory_that_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Psycopg's libpq and pg_dump's may have different directories built in; ours is one for both."""
    (tmp_path / ".s.PGSQL.5432").touch()
    monkeypatch.setattr(url_module, "SOCKET_DIRECTORIES", ("/nonexistent", str(tmp_path)))
    url = parse("postgresql:///d")

    assert url.effective_host == str(tmp_path)
    assert url.connect_arguments()["host"] == str(tmp_path)


@given(user=TEXTS, password=TEXTS, database=TEXTS, port=st.none() | st.integers(1, 65535))
def test_every_value_survives_the_round_trip(
    user: str, password: str, database: str, port: int | None
) -> None:
    """FAULTS 97: our text, libpq, SQLAlchemy with each driver: always the same values."""
    assume(len(database.encode()) <= 63)
    url = DatabaseURL("db.example.com", port, user, password, database, (("application_name", "a&b=c 日"),))

    assert parse(url.text) == url
    assert parse(url) is url
    assert pickle.loads(pickle.dumps(url)) == url  # noqa: S301 - our own bytes
    given_to_libpq = conninfo_to_dict(make_conninfo(**url.connect_arguments()))
    assert (given_to_libpq["user"], given_to_libpq["password"], given_to_libpq["dbname"]) == (
        user,
        password,
        database,
    )


@given(user=TEXTS, password=TEXTS, database=TEXTS, host=st.sampled_from(["h", "::1", "/run/pg", ""]))
def test_sqlalchemy_gets_the_same_values(user: str, password: str, database: str, host: str) -> None:
    """What SQLAlchemy hands to the driver is what we parsed; and its URL object is read back."""
    assume(len(database.encode()) <= 63)
    url = DatabaseURL(host, 7, user, password, database)
    for driver in ("psycopg", "asyncpg"):
        made = sqlalchemy.make_url(url.for_sqlalchemy(driver))
        _, arguments = made.get_dialect()().create_connect_args(made)
        name = "database" if driver == "asyncpg" else "dbname"
        got = (
            arguments["host"],
            int(arguments["port"]),
            arguments["user"],
            arguments["password"],
            arguments[name],
        )

        assert got == (host or url.effective_host, 7, user, password, database)


@given(user=TEXTS, password=TEXTS, database=TEXTS)
def test_a_sqlalchemy_url_object_is_accepted(user: str, password: str, database: str) -> None:
    """Its rendering leaves spaces and slashes that libpq refuses, so its fields are taken."""
    assume(len(database.encode()) <= 63)
    made = sqlalchemy.URL.create("postgresql+asyncpg", user, password, "h", 5, database, {"ssl": "require"})

    assert parse(made) == DatabaseURL("h", 5, user, password, database, (("sslmode", "require"),))


def test_sqlalchemy_is_not_imported() -> None:
    """It costs 141 ms; a URL object is recognised by its methods."""
    import subprocess

    modules = "keikaku_snapshots.postgres.url, keikaku_snapshots.postgres.tools"
    code = f"import sys, {modules}; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_asyncpg_gets_ssl_and_no_parameter_is_dropped_silently() -> None:
    """FAULTS 41: losing sslrootcert would lose the check of the server."""
    url = parse("postgresql://u@h/d?sslmode=verify-full&keepalives_idle=5&application_name=x")

    assert url.for_sqlalchemy("asyncpg").endswith("/d?ssl=verify-full")
    with pytest.raises(InvalidURLError, match="sslrootcert"):
        parse("postgresql://u@h/d?sslrootcert=/ca.pem").for_sqlalchemy("asyncpg")
    with pytest.raises(InvalidURLError, match="pg8000"):
        url.for_sqlalchemy("pg8000")


def test_neither_str_nor_repr_shows_a_secret() -> None:
    """FAULTS 31: password and the secret parameters are stars."""
    url = parse(f"postgresql://u:{CANARY}@h:5/d?sslpassword={CANARY}2&sslmode=require")

    assert CANARY not in str(url) + repr(url) + f"{url}" + url.location + repr([url])
    assert str(url) == "postgresql://u:***@h:5/d?sslmode=require&sslpassword=***"
    assert url.location == "h:5/d"


@given(password=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=8, max_size=20))
def test_redaction_finds_every_spelling(password: str) -> None:
    """FAULTS 31: raw, percent-encoded in either case, JSON, repr, SQL, password file, nested URL."""
    assume(password not in "postgresql://us3r:***@h:5432/datab4se")
    url = DatabaseURL("h", None, "us3r", password, "datab4se")
    spellings = [
        password,
        quote(password, safe=""),
        quote(password),
        quote(password, safe="").lower()
        if "%" in quote(password, safe="") and password.islower()
        else password,
        json.dumps(password)[1:-1],
        json.dumps({"url": password}),
        repr(password)[1:-1],
        password.replace("'", "''"),
        password.replace("\\", "\\\\").replace(":", "\\:"),
        url.text,
        url.for_sqlalchemy(),
        quote(url.text, safe=""),
        sqlalchemy.make_url(url.for_sqlalchemy()).render_as_string(hide_password=False),
    ]
    for spelling in spellings:
        redacted = url.redact(f"before «{spelling}» after")

        assert "***" in redacted
        assert password not in redacted.replace("***", "")


def test_a_short_password_is_hidden_where_a_password_stands_only() -> None:
    """Hiding each "a" would leave no readable text; a password equal to the user is shown anyway."""
    short = DatabaseURL("h", None, "u", "abc", "d")
    same = DatabaseURL("h", None, "postgres", "postgres", "d")

    assert short.redact("abc: postgresql://u:abc@h/d password=abc PGPASSWORD=abc abcd") == (
        "abc: postgresql://u:***@h/d password=*** PGPASSWORD=*** abcd"
    )
    assert same.redact('role "postgres", postgresql://postgres:postgres@h') == (
        'role "postgres", postgresql://postgres:***@h'
    )


def test_redaction_without_a_password_changes_nothing() -> None:
    """There is nothing to hide."""
    assert parse("postgresql://u@h/d").redact("text") == "text"


@pytest.mark.parametrize(
    ("database", "host", "expected"),
    [
        ("prod", "h", "prod"),
        ("app_prod", "h", "prod"),
        ("APP-PROD", "h", "prod"),
        ("app", "db.prod.example.com", "prod"),
        ("app", "prod-db1", "prod"),
        ("app", "/run/live/pg", "live"),
        ("production", "h", "production"),
        ("product", "h", None),
        ("reproduction", "h", None),
        ("prod2", "h", None),
        ("olive", "delivery.example.com", None),
        ("app", "h", None),
    ],
)
def test_protected_words_are_whole_words(database: str, host: str, expected: str | None) -> None:
    """B15: a word ends at anything that is no letter or digit, in any case."""
    assert (
        DatabaseURL(host, None, "u", None, database).protected_word(("prod", "production", "live"))
        == expected
    )


def test_a_protected_word_may_hold_punctuation_and_an_empty_one_protects_nothing() -> None:
    """Words are no patterns."""
    url = DatabaseURL("h", None, "u", None, "my.app-live_x")

    assert url.protected_word(["", ".", "app-live"]) == "app-live"
    assert url.protected_word(["", "a.p"]) is None


def test_every_libpq_option_with_a_variable_is_set() -> None:
    """FAULTS 8, 11: what libpq would read from the environment has a value already, or is hidden."""
    arguments = parse("postgresql://u@h/d").connect_arguments()
    missing = {
        option.envvar.decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar and option.keyword.decode() not in arguments
    }

    assert missing <= set(inherited._UNOVERRIDABLE_VARIABLES)
    assert arguments["hostaddr"] == arguments["password"] == arguments["options"] == ""


def test_defaults_do_not_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in defaults are taken even when variables were there at the first call."""
    monkeypatch.setenv("PGSSLMODE", "disable")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "77")
    inherited.neutral_options.cache_clear()
    arguments = parse("postgresql://u@h/d").connect_arguments()

    assert arguments["sslmode"] == "prefer"
    assert arguments["connect_timeout"] == inherited.DEFAULT_CONNECT_TIMEOUT_S


def test_what_no_option_overrides_is_hidden_for_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 11: PGSERVICE and the session variables come back afterwards, also after an error."""
    monkeypatch.setenv("PGSERVICE", "evil")
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    with pytest.raises(ZeroDivisionError), inherited_settings_hidden():  # noqa: PT012 - what the block does is the point
        assert "PGSERVICE" not in os.environ
        assert "PGTZ" not in os.environ
        _ = 1 / 0

    assert (os.environ["PGSERVICE"], os.environ["PGTZ"]) == ("evil", "Asia/Tokyo")


def test_threads_that_connect_at_once_all_find_them_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while another is inside must not go on when that one has brought them back."""
    monkeypatch.setenv("PGSERVICE", "evil")
    first, second = inherited_settings_hidden(), inherited_settings_hidden()
    with first:
        second.__enter__()

    assert "PGSERVICE" not in os.environ
    second.__exit__(None, None, None)
    assert os.environ["PGSERVICE"] == "evil"


@pytest.mark.parametrize(
    ("name", "expected"), [("a", '"a"'), ('a"b', '"a""b"'), ("select", '"select"'), ("Ä b", '"Ä b"')]
)
def test_identifiers_are_always_quoted(name: str, expected: str) -> None:
    """A quote inside is doubled."""
    assert quote_identifier(name) == expected


@pytest.mark.parametrize("name", ["", "a\0"])
def test_an_impossible_identifier_is_refused(name: str) -> None:
    """PostgreSQL has none of length zero."""
    with pytest.raises(InvalidNameError):
        quote_identifier(name)
