"""The two hashes over the catalog see the same things."""

from __future__ import annotations

import re

from keikaku_snapshots.postgres import ddl_watch


def test_versions_are_read_of_every_catalog_whose_contents_count() -> None:
    """While no version changed, contents are not read: a catalog that is missing there would hide changes."""

    def catalogs(query: str) -> set[str]:
        return set(re.findall(r"(?:FROM|JOIN) (pg_\w+)", query))

    contents = catalogs(ddl_watch.ddl_hash_query())
    assert len(contents) > 20
    assert catalogs(ddl_watch._versions_query()) == contents
