"""Warm templates: complete copies of snapshots that stay on the server (docs/design.md, Warm restore).

A template is a database that was loaded from a snapshot, counted and analysed; that
it has its name says that all of this was done. It is a cache: the files are
the truth, and each template can be dropped at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.creation import comment_statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.rights import RoleRights

log = logging.getLogger("keikaku_snapshots.templates")

#: Most templates on a server.
MAX_TEMPLATES = 3
#: Most bytes of all templates and spares together; a third of the free disk where that is known and less.
MAX_BYTES = 20_000_000_000
#: Changes when what is in a template of a snapshot changes, so that older ones are not used.
_LAYOUT = 1
_PREFIX = "keikaku_tpl_"
_KEY_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Template:
    """A template on the server, as its comment describes it."""

    #: Name of the database.
    database: str
    #: What it was made from and for whom; 32 hexadecimal digits.
    key: str
    #: Name and version of the snapshot it was made from.
    snapshot: str
    #: The database that it was made for; others can use it too.
    target: str
    #: Bytes on disk when it was made.
    size_bytes: int
    #: When it was made, UTC, ISO 8601.
    created_at: str
    #: When it was last cloned, UTC, ISO 8601.
    used_at: str
    #: Clones that wait to be used.
    spares: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Of itself and its spares."""
        return self.size_bytes * (1 + len(self.spares))


@dataclass(frozen=True, slots=True)
class Found:
    """A template with what only a restore needs."""

    #: What people see.
    template: Template
    #: Its mark.
    identity: databases.Identity
    #: Number of the database on the server: another one with the same name is another template.
    oid: int

    @property
    def spares(self) -> tuple[str, ...]:
        """Clones of it that wait to be used."""
        return self.template.spares

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be given back exactly when it was loaded."""
        return tuple(self.identity.extra.get("warnings", ()))

    @property
    def verified(self) -> tuple[str, ...]:
        """Files that were read and found right, newest first."""
        return tuple(self.identity.extra.get("verified", ()))

    @property
    def known_schema(self) -> list[object] | None:
        """State of the catalog of a database that had the snapshot's schema."""
        return self.identity.extra.get("schema")


def template_key(admin: Connection, manifest: Manifest, target: str, rights: RoleRights) -> str:
    """Say what a template must have been made from to serve a restore.

    Hooks are no part of it: they run on the clone at each restore, because what they do (a migration) is
    not known from their text.

    Args:
        admin: The maintenance database, as the role that loads.
        manifest: What is known about the snapshot.
        target: The database to restore.
        rights: Which of the snapshot's roles the connected role can serve: decides on owners and grants.

    Returns:
        32 hexadecimal digits.
    """
    locale = databases.locale_options(admin, target)
    role, owner = admin.execute(
        "SELECT current_user::text, pg_catalog.pg_get_userbyid(d.datdba)"
        " FROM pg_catalog.pg_database d WHERE d.datname = %s",
        (target,),
    ).fetchone() or ("", "")
    facts = {
        "layout": _LAYOUT,
        "sha256": manifest.sha256,
        "owners": manifest.owners,
        "role": [role],
        "owner": owner,
        "rights": {name: sorted(value) if isinstance(value, frozenset) else value
                   for name, value in asdict(rights).items()},
        "server": admin.info.server_version // 10_000,
        "locale": asdict(locale),
        "extensions": _extension_versions(admin, manifest),
    }  # fmt: skip
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def _extension_versions(admin: Connection, manifest: Manifest) -> list[list[str]]:
    """Versions that a load would make now; reading them is a look at the server's files."""
    names = [str(one.get("name")) for one in manifest.extensions if one.get("name") != "plpgsql"]
    if not names:
        return []
    rows = admin.execute(
        "SELECT name::text, default_version FROM pg_catalog.pg_available_extensions"
        " WHERE name = ANY (%s) ORDER BY 1",
        (names,),
    ).fetchall()
    return [[str(name), str(version)] for name, version in rows]


def template_name(key: str) -> str:
    """Name the database of a template."""
    return _PREFIX + key


def spare_name(key: str) -> str:
    """Make a name for a spare; each is new."""
    return databases.sibling_name("spare", key)


def find(admin: Connection, key: str) -> Found | None:
    """Look for a template and its spares.

    Args:
        admin: The maintenance database.
        key: From `template_key`.

    Returns:
        The template, or None.
    """
    found, _ = look(admin, key)
    return found[0] if found else None


def list_templates(admin: Connection) -> list[Template]:
    """List the templates of a server.

    Args:
        admin: The maintenance database.

    Returns:
        Templates, whoever made them, last used first.
    """
    return [one.template for one in look(admin)[0]]


def look(admin: Connection, key: str = "") -> tuple[list[Found], list[str]]:
    """Look at the templates of a server and at the spares whose template is gone or was made anew.

    Args:
        admin: The maintenance database.
        key: Only this one; all when empty.

    Returns:
        Templates, whoever made them, last used first; names of spares that serve nobody.
    """
    rows = admin.execute(
        "SELECT d.datname::text, d.oid::bigint, pg_catalog.shobj_description(d.oid, 'pg_database')"
        " FROM pg_catalog.pg_database d WHERE d.datname LIKE ANY (%s) ORDER BY 1",
        ([f"keikaku\\_tpl\\_{key}%", f"keikaku\\_spare\\_{key}%"],),
    ).fetchall()
    marked = [(str(name), int(oid), mark) for name, oid, comment in rows
              if (mark := databases.Identity.from_comment(comment)) is not None]  # fmt: skip
    spares = [(name, mark.extra) for name, _, mark in marked if mark.kind == "spare" and "key" in mark.extra]
    # The name alone decides nothing, and neither does the mark alone.
    found = [
        _found(name, oid, mark, spares)
        for name, oid, mark in marked
        if mark.kind == "tpl" and name == template_name(str(mark.extra.get("key")))
    ]
    found.sort(key=lambda one: one.template.used_at, reverse=True)
    good = {name for one in found for name in one.spares}
    return found, [name for name, _ in spares if name not in good]


def _found(
    name: str, oid: int, mark: databases.Identity, spares: Sequence[tuple[str, Mapping[str, Any]]]
) -> Found:
    key = mark.extra["key"]
    template = Template(
        name,
        key,
        str(mark.extra.get("snapshot", "")),
        mark.target,
        int(mark.extra.get("size_bytes", 0)),
        mark.created_at,
        str(mark.extra.get("used_at", mark.created_at)),
        tuple(other for other, extra in spares if extra["key"] == key and extra.get("template") == oid),
    )
    return Found(template, mark, oid)


def new_mark(target: str, key: str, snapshot: str, **facts: Any) -> databases.Identity:
    """Make the mark of a new template.

    Args:
        target: The database it is made for.
        key: From `template_key`.
        snapshot: Name and version.
        facts: Size, warnings, verified files.

    Returns:
        For its comment.
    """
    extra = {"key": key, "snapshot": snapshot, "used_at": _now(), **facts}
    return databases.Identity(kind="tpl", target=target, extra=extra)


def note_use(admin: Connection, found: Found, **facts: Any) -> None:
    """Write into a template's mark that it was used now; without waiting for those who clone it.

    Args:
        admin: The maintenance database, in autocommit.
        found: The template.
        facts: What else is known now: files found right, state of the catalog.
    """
    extra = {**found.identity.extra, "used_at": _now(), **facts}
    mark = replace(found.identity, extra=extra).to_comment()
    try:
        with admin.transaction():
            admin.execute("SET LOCAL lock_timeout = '50ms'")
            admin.execute("SET LOCAL synchronous_commit = off")
            admin.execute(comment_statement(found.template.database, mark))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.InvalidCatalogName) as error:
        log.debug("the use of %s was not noted (%s)", found.template.database, type(error).__name__)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_drop(
    templates: Iterable[Template], newest: str, *, count: int = MAX_TEMPLATES, limit_bytes: int = MAX_BYTES
) -> list[Template]:
    """Choose the templates that must go, least recently used first.

    Args:
        templates: All of a server.
        newest: Database name of the one that always stays.
        count: How many may stay.
        limit_bytes: How large they may be together, spares included.

    Returns:
        Templates to drop.
    """
    by_use = sorted(templates, key=lambda one: (one.database == newest, one.used_at), reverse=True)
    total_bytes = 0
    doomed = []
    for place, one in enumerate(by_use):
        total_bytes += one.total_bytes
        if place > 0 and (place >= count or total_bytes > limit_bytes):
            doomed.append(one)
            total_bytes -= one.total_bytes
    return doomed[::-1]


def byte_limit(free_bytes: int | None, templates: Iterable[Template]) -> int:
    """Say how many bytes templates may take.

    Args:
        free_bytes: Free on the server's disk; None where that is not known.
        templates: What is there already.

    Returns:
        20 GB, or a third of what is free without templates.
    """
    if free_bytes is None:
        return MAX_BYTES
    return min(MAX_BYTES, (free_bytes + sum(one.total_bytes for one in templates)) // 3)


def drop_databases(admin: Connection, names: Iterable[str]) -> list[str]:
    """Drop templates or spares.

    Args:
        admin: The maintenance database, in autocommit.
        names: What they are called.

    Returns:
        Names of what was dropped; what could not be is logged.
    """
    dropped = []
    for name in names:
        try:
            if databases.drop(admin, name):
                dropped.append(name)
        except KeikakuError as error:
            log.warning("%s was not dropped: %s", name, error.what)
    return dropped
