"""The splitter cuts a dump where psql would, and refuses what pg_dump never writes."""

from __future__ import annotations

import pytest

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.snapshots.script import FIND_CHUNK_BYTES, Kind, read_parts

DUMP = rb"""--
-- PostgreSQL database dump
--

\restrict abc123

SET lock_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);

CREATE FUNCTION public.f() RETURNS text LANGUAGE sql AS $_$
COPY x FROM stdin;
1
\.
\! touch /tmp/never
-- ' " /* $$ ;
$_$;
CREATE FUNCTION public.g() RETURNS integer LANGUAGE sql BEGIN ATOMIC
 SELECT CASE WHEN true THEN 1 ELSE 2 END;
 SELECT 2;
END;
CREATE VIEW v AS SELECT E'a\'; COMMIT;' AS a, 'b''; COMMIT;' AS "c""; d", a$b$c AS e /* ; /* ; */ ; */;
CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO a VALUES (1); INSERT INTO a VALUES (';'));
ALTER TABLE public.t OWNER TO "Some One";
ALTER TABLE public.t ADD CONSTRAINT c CHECK (a <> ' OWNER TO x;');
COPY public."new
line;" (id, "a;b") FROM stdin;
1	\\.
2	COPY y FROM stdin;
\.


COPY public.empty (id) FROM stdin;
\.


SELECT pg_catalog.setval('public.s', 3, true);
BEGIN;
SELECT pg_catalog.lo_open('1', 131072);
COMMIT;
REFRESH MATERIALIZED VIEW public.m;
GRANT SELECT ON TABLE public.t TO reader;
COMMENT ON EXTENSION e IS '';

--
-- PostgreSQL database dump complete
--

\unrestrict abc123

"""

KINDS = [
    Kind.SETTING,
    Kind.SETTING,
    *[Kind.DEFINITION] * 4,
    Kind.OWNER,
    Kind.DEFINITION,
    Kind.COPY,
    Kind.COPY,
    Kind.SEQUENCE,
    Kind.TRANSACTION,
    Kind.LARGE_OBJECT,
    Kind.TRANSACTION,
    Kind.REFRESH,
    Kind.PRIVILEGE,
    Kind.EXTENSION,
]


def test_parts_are_cut_and_named_as_psql_would_cut_them() -> None:
    """FAULTS 28: quotes, dollar quotes, comments, rules and BEGIN ATOMIC hide what looks like statements."""
    parts = list(read_parts(DUMP, name="dump"))
    assert [part.kind for part in parts] == KINDS
    first, second = (part for part in parts if part.kind is Kind.COPY)
    assert DUMP[first.data_start : first.data_end] == b"1\t\\\\.\n2\tCOPY y FROM stdin;\n"
    assert DUMP[second.data_start : second.data_end] == b""


def test_the_end_of_rows_is_found_across_chunks() -> None:
    """A7: large files are searched piece by piece."""
    for shift in range(-4, 3):
        rows = b"x" * (FIND_CHUNK_BYTES + shift) + b"\n"
        script = b"COPY a.b (c) FROM stdin;\n" + rows + b"\\.\n"
        (part,) = read_parts(script, name="dump")
        assert part.data_end - part.data_start == len(rows)


@pytest.mark.parametrize(
    "foreign",
    [
        rb"\connect other",
        rb"\! touch /tmp/never",
        rb"\unrestrict `touch /tmp/never`",
        b"COMMIT AND CHAIN;",
        b"ROLLBACK;",
        b"SAVEPOINT a;",
        b"COPY a.b TO PROGRAM 'sh';",
        b"COPY a.b FROM PROGRAM 'sh';",
        b"COPY a.b FROM PROGRAM 'sh' WHERE c IS DISTINCT FROM stdin;\n1\n\\.",
        b"DO $$ BEGIN END $$;",
        b"CREATE DATABASE x;",
        b"SELECT 'never closed",
        b"/* never closed",
        b"SELECT 1",
        b"COPY a.b (c) FROM stdin;\n1\n",
    ],
)
def test_what_pg_dump_never_writes_is_refused(foreign: bytes) -> None:
    """FAULTS 12, 15, 16, 23, 24, 25, 29."""
    with pytest.raises(SnapshotCorruptError):
        list(read_parts(b"SET a = 1;\n" + foreign + b"\n", name="dump"))


def test_a_column_named_begin_does_not_open_another_body() -> None:
    """The server writes such a name without quotes; psql cannot read what pg_dump writes of it."""
    script = b"CREATE FUNCTION a.f() RETURNS integer BEGIN ATOMIC\n SELECT 1 AS begin;\nEND;\nSELECT 1;\n"
    assert len(list(read_parts(script, name="dump"))) == 2


def test_a_table_with_the_most_and_longest_columns_is_read() -> None:
    """1,600 quoted names make a COPY statement of over 100 kB."""
    columns = ", ".join(f'"{"x" * 58} {number:04}"' for number in range(1600))
    script = f'COPY a."b""; c" ({columns}) FROM stdin;\n1\n\\.\n'.encode()
    (part,) = read_parts(script, name="dump")
    assert part.kind is Kind.COPY


def test_nothing_may_follow_the_end() -> None:
    """FAULTS 25: a file that knows its own key."""
    with pytest.raises(SnapshotCorruptError, match="behind the end"):
        list(read_parts(DUMP + b"DROP TABLE t;\n", name="dump"))
