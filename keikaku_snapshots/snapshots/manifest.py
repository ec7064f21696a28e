"""What is known about a snapshot: the manifest on disk and the value that people hold.

A snapshot exists when its manifest exists. The manifest carries the checksum
of the data file and one of itself, so that neither can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from keikaku_snapshots.errors import SnapshotCorruptError, UsageError
from keikaku_snapshots.snapshots.hashing import FileHash
from keikaku_snapshots.snapshots.names import (
    VersionOrder,
    check_name,
    check_version,
    split_data_file_name,
    suffix_of,
    version_order,
)
from keikaku_snapshots.snapshots.parts import check_parts

if typing.TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMAT_VERSION", "Manifest", "Snapshot", "check_name"]

#: Raised when a reader of the older layout could misread the newer one.
FORMAT_VERSION: Final = 1

_CHECKSUM_FIELD: Final = "manifest_sha256"
_SHA256_DIGITS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything recorded about one version of a snapshot (no URL, no host, no password of a database)."""

    #: Name of the snapshot.
    name: str
    #: ``YYYYMMDD_HHMMSS``, ``YYYYMMDD_HHMMSS_n`` or a label.
    version: str
    #: When the work began; aware UTC.
    created_at: datetime
    #: Name of the data file, without folder.
    data_file: str
    #: Bytes of the data file; of a directory, of all its parts.
    size_bytes: int
    #: SHA-256 of the data file, 64 hexadecimal digits; of a directory, of what
    #: ``LC_ALL=C sha256sum *`` prints in it.
    sha256: str
    #: ``plain``, ``custom``, ``directory`` or ``json``.
    format: str
    #: ``gzip``, ``zstd`` or nothing.
    compression: str | None = None
    #: Bytes of the data file when it is unpacked; None without a compression.
    uncompressed_bytes: int | None = None
    #: SHA-256 of the data file when it is unpacked; empty without a compression.
    uncompressed_sha256: str = ""
    #: Of a directory: SHA-256 and bytes of each part, by its file name; empty for other formats.
    parts: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    #: ``database`` or ``test_data``.
    scope: str = "database"
    #: Column that marks the rows of ``test_data``; empty for ``database``.
    marker: str = ""
    #: SQL conditions of ``test_data`` by table, where the column does not decide.
    predicates: dict[str, str] = field(default_factory=dict, hash=False)
    #: Number of this publication within its name and directory, from 1.
    sequence: int = 1
    #: What the person who made it wrote.
    description: str = ""
    #: When the data was complete; aware UTC.
    finished_at: datetime | None = None
    #: Name of the database.
    database: str = ""
    #: Version of the server as it says it.
    server_version: str = ""
    #: Major version of the server.
    server_major: int = 0
    #: Version of each program used, by its name.
    tool_versions: dict[str, str] = field(default_factory=dict, hash=False)
    #: Version of this library.
    keikaku_version: str = ""
    #: Encoding of the database.
    encoding: str = ""
    #: Collation of the database.
    collation: str = ""
    #: Extensions: name, version, schema, owner, trusted.
    extensions: list[dict[str, Any]] = field(default_factory=list, hash=False)
    #: Roles that own or are granted something.
    roles: list[str] = field(default_factory=list, hash=False)
    #: Owners and grants are in the data file.
    owners: bool = True
    #: Made with ``--clean --if-exists``.
    clean: bool = False
    #: Digest of the schema.
    schema_fingerprint: str = ""
    #: Text of each schema object by its name, for a readable difference.
    schema_objects: dict[str, str] = field(default_factory=dict, hash=False)
    #: Digest of all owners and grants; tells a restore whether it must give them back.
    ownership_digest: str = ""
    #: Alembic revisions the database was at.
    alembic_heads: list[str] = field(default_factory=list, hash=False)
    #: Rows of each table, by ``schema.table``.
    row_counts: dict[str, int] = field(default_factory=dict, hash=False)
    #: Sequences: last value and whether it was called, by ``schema.sequence``.
    sequences: dict[str, list[Any]] = field(default_factory=dict, hash=False)
    #: Number of large objects.
    large_objects: int = 0
    #: Extensions whose owner is not the dumping role.
    foreign_owned_extensions: list[str] = field(default_factory=list, hash=False)
    #: Free words.
    tags: list[str] = field(default_factory=list, hash=False)
    #: Never deleted by retention.
    pinned: bool = False
    #: What a door put in: dataset, scale, seed.
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    #: Account and machine that made it.
    created_by: dict[str, str] = field(default_factory=dict, hash=False)
    #: Layout of this manifest.
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_name(self.name)
        check_version(self.version)
        suffix_of(self.format, self.compression)
        for label in ("created_at", "finished_at"):
            moment = getattr(self, label)
            if moment is not None and moment.tzinfo is None:
                raise UsageError(f"{label} has no time zone")
        if os.sep in self.data_file or "\0" in self.data_file or self.data_file in {"", ".", ".."}:
            raise UsageError(f"data_file {self.data_file!r} is not the name of a file")
        if self.size_bytes < 0 or self.sequence < 1:
            raise UsageError("size_bytes and sequence of a manifest cannot be negative")
        if len(self.sha256) != _SHA256_DIGITS or set(self.sha256) - set("0123456789abcdef"):
            raise UsageError("sha256 of a manifest must be 64 hexadecimal digits")
        if self.uncompressed_bytes is not None and self.uncompressed_bytes < 0:
            raise UsageError("uncompressed_bytes of a manifest cannot be negative")
        if self.format == "directory":
            check_parts(self.parts, FileHash(self.sha256, self.size_bytes))
        elif self.parts:
            raise UsageError(f"format {self.format!r} has no parts")

    @property
    def suffix(self) -> str:
        """Suffix of the data file without the leading dot."""
        return suffix_of(self.format, self.compression)

    def to_json(self) -> bytes:
        """Return the manifest as it is written: readable JSON with a checksum of itself.

        Raises:
            UsageError: ``metadata`` holds something that JSON does not know.
        """
        document = {item.name: _to_plain(getattr(self, item.name)) for item in fields(self)}
        try:
            document[_CHECKSUM_FIELD] = _checksum(document)
            text = json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(
                "the manifest cannot be written as JSON",
                found=str(error),
                hint="metadata may hold text, finite numbers, true/false, null, lists, and dictionaries.",
            ) from error
        return (text + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read a manifest, believing nothing.

        Args:
            text: The bytes of the manifest file.

        Raises:
            SnapshotCorruptError: It is no JSON, its checksum differs, its
                format version is unknown, or a field is missing, unknown, or
                of the wrong type.
        """
        document = _parse(text)
        version = document.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise SnapshotCorruptError(
                f"the manifest has format version {version!r}, this program reads {FORMAT_VERSION}",
                hint="Use the version of keikaku_snapshots that made it, or a newer one.",
            )
        stored = document.pop(_CHECKSUM_FIELD, None)
        if stored != _checksum(document):
            raise SnapshotCorruptError("the manifest was changed after it was written: its checksum differs")
        kinds = _field_types()
        if unknown := sorted(set(document) - set(kinds)):
            raise SnapshotCorruptError(f"the manifest has unknown fields: {', '.join(unknown)}")
        try:
            values = {key: _from_plain(key, value, kinds[key]) for key, value in document.items()}
            return cls(**values)
        except (TypeError, UsageError) as error:
            raise SnapshotCorruptError(f"the manifest is not usable: {error.args[0]}") from error


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a snapshot as it lies on disk; usable wherever a path is."""

    #: The data file, or the directory of the format ``directory``; absolute.
    path: Path
    #: Name of the snapshot; from the file name when there is no readable manifest.
    name: str
    #: Version of the snapshot; likewise.
    version: str
    #: Aware UTC; for a file without manifest what its version says, else its modification time.
    created_at: datetime
    #: Bytes of the data file as it is now; of a directory, of all that is in it.
    size_bytes: int
    #: Rows of each table, by ``schema.table``; empty when not known.
    row_counts: dict[str, int] = field(default_factory=dict, hash=False)
    #: True when the manifest is whole and the data file has its size; `verify` reads the whole file.
    is_valid: bool = True
    #: Why it is not valid, in words.
    problem: str = ""
    #: ``plain``, ``custom``, ``directory`` or ``json``.
    format: str = "plain"
    #: The manifest, when it could be read.
    manifest: Manifest | None = field(default=None, repr=False)
    #: Bytes that deleting it would free: those of parts that no other snapshot has.
    own_bytes: int = field(default=0, compare=False)
    #: Bytes of parts that other snapshots have too; they are on the disk once. 0 for other formats.
    shared_bytes: int = field(default=0, compare=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is, or would be."""
        base = self.path.name if self.manifest is None else _canonical(self.manifest)
        return self.path.with_name(base + ".manifest.json")

    @property
    def description(self) -> str:
        """What the person who made it wrote."""
        return self.manifest.description if self.manifest else ""

    @property
    def tags(self) -> tuple[str, ...]:
        """Free words."""
        return tuple(self.manifest.tags) if self.manifest else ()

    @property
    def pinned(self) -> bool:
        """Never deleted by retention."""
        return self.manifest.pinned if self.manifest else False

    @property
    def suffix(self) -> str:
        """Suffix of the data file without the leading dot."""
        if self.manifest is not None:
            return self.manifest.suffix
        parts = split_data_file_name(self.path.name)
        return parts.suffix if parts else self.path.suffix.lstrip(".")

    @property
    def order(self) -> VersionOrder:
        """What versions of one name are sorted by; a label counts as the second it was made in."""
        return version_order(self.version) or VersionOrder(self.created_at.replace(microsecond=0), 1)

    @property
    def sort_key(self) -> tuple[datetime, int, int, str]:
        """Greater is newer."""
        moment, number = self.order
        return moment, number, self.manifest.sequence if self.manifest else 0, self.version


def _canonical(manifest: Manifest) -> str:
    return f"{manifest.name}_{manifest.version}.{manifest.suffix}"


def _to_plain(value: object) -> object:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _checksum(document: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON (sorted keys, no blanks, UTF-8) of all fields but the checksum."""
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(text: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    def no_constants(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        document = json.loads(text.decode(), object_pairs_hook=no_duplicates, parse_constant=no_constants)
    except (ValueError, RecursionError) as error:
        raise SnapshotCorruptError("the manifest is not readable JSON", found=str(error)) from error
    if not isinstance(document, dict):
        raise SnapshotCorruptError("the manifest is not a JSON object")
    return document


@cache
def _field_types() -> dict[str, Any]:
    hints = typing.get_type_hints(Manifest)
    return {item.name: hints[item.name] for item in fields(Manifest)}


def _from_plain(key: str, value: Any, kind: Any) -> Any:
    """Return ``value`` as field ``key`` of type ``kind``; only what `to_json` writes is accepted."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if kind is datetime:
        try:
            return datetime.fromisoformat(value).astimezone(UTC) if _is_aware(value) else _wrong(key, value)
        except ValueError:
            return _wrong(key, value)
    base = typing.get_origin(kind) or kind
    if not isinstance(value, base) or (base is int and isinstance(value, bool)):
        return _wrong(key, value)
    inner = typing.get_args(kind)
    if inner and inner[-1] is not Any:
        items = value.values() if isinstance(value, dict) else value
        # A line for every object of the schema: the usual case is looked at in one go.
        if not all(type(item) is inner[-1] for item in items):
            for item in items:
                _from_plain(key, item, inner[-1])
    return value


def _is_aware(value: object) -> bool:
    return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None


def _wrong(key: str, value: object) -> Any:
    raise UsageError(f"{key} has a value of the wrong kind ({type(value).__name__})")
