"""What the hashes over the catalog read."""

from __future__ import annotations

import re

from keikaku_snapshots.postgres import catalog_hashes
from keikaku_snapshots.postgres.fingerprint_queries import QUERIES

#: Catalogs whose rows come and go with those of another one.
FOLLOWERS = {
    "pg_aggregate": "pg_proc",
    "pg_range": "pg_type",
}


def catalogs(query: str) -> set[str]:
    """Find the catalogs that a query reads."""
    return set(re.findall(r"(?:FROM|JOIN) (pg_(?!catalog)\w+)", query))


def test_versions_are_read_of_every_catalog_whose_contents_count() -> None:
    """While no version changed, contents are not read: a catalog that is missing there would hide changes."""
    contents = catalogs(catalog_hashes.contents_query())
    assert len(contents) > 20
    assert catalogs(catalog_hashes.versions_query()) == contents


def test_versions_are_read_of_every_catalog_that_the_fingerprint_reads() -> None:
    """While no version changed, a warm restore takes no fingerprint: it could not have changed either."""
    read = set().union(*(catalogs(query) for query in QUERIES))
    assert len(read) > 20
    known = catalogs(catalog_hashes.versions_query(*catalog_hashes._NAMED))
    assert {FOLLOWERS.get(catalog, catalog) for catalog in read} <= known
