"""Names and versions of snapshots, and the file names made of them.

A data file (or, for the format ``directory``, a directory of parts) is called
``<name>_<version>.<suffix>``, its manifest has ``.manifest.json`` behind that,
and the link to the newest one is ``<name>_latest.<suffix>``. Which snapshot a
file belongs to is said by its manifest; the file name is only taken apart when
there is no manifest.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

from keikaku_snapshots.errors import InvalidNameError, ParameterTypeError, UsageError

#: Suffix of the data file for each format.
FORMAT_SUFFIXES: Final[dict[str, str]] = {
    "plain": "sql",
    "custom": "dump",
    "directory": "dir",
    "json": "json",
}
#: Formats whose name does not say the compression: each part of a directory is compressed by itself.
_NAMED_ALIKE: Final = frozenset({"directory"})
#: Further suffix for each compression; ``None`` is no compression.
COMPRESSION_SUFFIXES: Final[dict[str | None, str]] = {None: "", "gzip": ".gz", "zstd": ".zst"}
#: What a manifest's file name has behind the data file's.
MANIFEST_SUFFIX: Final = ".manifest.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STAMP = re.compile(r"(?P<stamp>[0-9]{8}_[0-9]{6})(?:_(?P<number>[2-9]|[1-9][0-9]{1,5}))?")
# A label of the user's own. No underscore, so that a file name comes apart in
# one way only; never digits alone, which would read as part of a stamp.
_LABEL = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9][A-Za-z0-9.-]{0,39}")
_ENDS_IN_STAMP = re.compile(r"(?:.*_)?[0-9]{8}_[0-9]{6}(?:_[0-9]+)?")
_STAMP_FORMAT: Final = "%Y%m%d_%H%M%S"
#: Every suffix that a data file can have, without the leading dot.
SUFFIXES: Final = tuple(
    base + packed
    for format_name, base in FORMAT_SUFFIXES.items()
    for packed in COMPRESSION_SUFFIXES.values()
    if not (packed and format_name in _NAMED_ALIKE)
)
_SUFFIX_PATTERN: Final = "|".join(sorted(map(re.escape, SUFFIXES), reverse=True))
_NAME_PART: Final = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})"
# The first one that fits decides: a stamp at the end is never part of the name.
_DATA_FILES = (
    re.compile(
        rf"{_NAME_PART}_(?P<version>[0-9]{{8}}_[0-9]{{6}}(?:_[0-9]{{1,6}})?)\.(?P<suffix>{_SUFFIX_PATTERN})"
    ),
    re.compile(rf"{_NAME_PART}_(?P<version>[A-Za-z0-9][A-Za-z0-9.-]{{0,39}})\.(?P<suffix>{_SUFFIX_PATTERN})"),
)


class VersionOrder(NamedTuple):
    """What a version is sorted by: the second, then the number within it."""

    #: Aware UTC, whole seconds.
    moment: datetime
    #: 1 for a plain stamp, n for ``_n``.
    number: int


class DataFileName(NamedTuple):
    """A data file's name, taken apart."""

    #: Name of the snapshot.
    name: str
    #: Its version.
    version: str
    #: Suffix without the leading dot, such as ``sql``.
    suffix: str


def check_name(name: object) -> str:
    """Return ``name`` when it can be a snapshot's name.

    Args:
        name: What the caller passed, of any type.

    Returns:
        The same text.

    Raises:
        ParameterTypeError: It is not text.
        InvalidNameError: It is not ``[A-Za-z0-9][A-Za-z0-9._-]{0,99}``, or
            would be taken for the ``latest`` link or for a version.
    """
    if not isinstance(name, str):
        raise ParameterTypeError(f"snapshot name must be text, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise InvalidNameError(f"snapshot name {name[:120]!r} cannot be used")
    if name.lower() == "latest" or name.lower().endswith("_latest"):
        raise InvalidNameError(
            f"snapshot name {name!r} cannot be used",
            found="Names that are or end in 'latest' are kept for the link to the newest version.",
            hint="Choose another name; the newest version is always found without it.",
        )
    if _ENDS_IN_STAMP.fullmatch(name):
        raise InvalidNameError(
            f"snapshot name {name!r} cannot be used",
            found="It ends like a version (YYYYMMDD_HHMMSS), so it would be taken for one.",
            hint="Give the name without the version, and the version as version= (--version).",
        )
    return name


def check_version(version: object) -> str:
    """Return ``version`` when it can be a version's name.

    Args:
        version: ``YYYYMMDD_HHMMSS``, ``YYYYMMDD_HHMMSS_n`` with n from 2, or a
            label of letters, digits, ``.`` and ``-`` (at most 40, not digits alone).

    Returns:
        The same text.

    Raises:
        ParameterTypeError: It is not text.
        UsageError: It is none of these.
    """
    if not isinstance(version, str):
        raise ParameterTypeError(f"version must be text, not {type(version).__name__}")
    hint = "Use YYYYMMDD_HHMMSS (UTC), or a label such as v1.2 without underscores; or leave it out."
    if _STAMP.fullmatch(version):
        if version_order(version) is None:
            raise UsageError(f"version {version!r} is not a date and time", hint=hint)
        return version
    if not _LABEL.fullmatch(version) or version.lower() == "latest" or version.endswith(".manifest"):
        raise UsageError(f"version {version[:120]!r} cannot be used", hint=hint)
    return version


def version_order(version: str) -> VersionOrder | None:
    """Return what a stamp version is sorted by, ``None`` for a label or an impossible date."""
    match = _STAMP.fullmatch(version)
    if match is None:
        return None
    try:
        moment = datetime.strptime(match["stamp"], _STAMP_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
    return VersionOrder(moment, int(match["number"] or 1))


def next_version(now: datetime, newest: VersionOrder | None) -> str:
    """Return the version for a snapshot begun at ``now`` that sorts after all others of its name.

    A second one in the same second gets ``_2``. When the clock went back, the
    newest stamp is taken again with the next number, so that order never lies.

    Args:
        now: Aware time; local times are turned into UTC.
        newest: Order of the newest version of this name, if there is one.

    Raises:
        UsageError: ``now`` has no time zone.
    """
    if now.tzinfo is None:
        raise UsageError("a time without time zone cannot name a version")
    moment = now.astimezone(UTC).replace(microsecond=0)
    if newest is None or moment > newest.moment:
        return moment.strftime(_STAMP_FORMAT)
    return f"{newest.moment.strftime(_STAMP_FORMAT)}_{newest.number + 1}"


def suffix_of(format_name: str, compression: str | None = None) -> str:
    """Return the data file's suffix without the leading dot.

    Raises:
        UsageError: Format or compression is unknown.
    """
    if format_name not in FORMAT_SUFFIXES:
        raise UsageError(f"format {format_name!r} is not known", found=f"known: {', '.join(FORMAT_SUFFIXES)}")
    if compression not in COMPRESSION_SUFFIXES:
        known = ", ".join(text for text in COMPRESSION_SUFFIXES if text)
        raise UsageError(f"compression {compression!r} is not known", found=f"known: {known}")
    packed = "" if format_name in _NAMED_ALIKE else COMPRESSION_SUFFIXES[compression]
    return FORMAT_SUFFIXES[format_name] + packed


def format_of_suffix(suffix: str) -> tuple[str, str | None]:
    """Return format and compression that a suffix stands for; a directory's compression is not told by it."""
    base, _, packed = suffix.partition(".")
    format_name = next(key for key, text in FORMAT_SUFFIXES.items() if text == base)
    compression = next(
        key for key, text in COMPRESSION_SUFFIXES.items() if text == (f".{packed}" if packed else "")
    )
    return format_name, compression


def data_file_name(name: str, version: str, suffix: str) -> str:
    """Return the name of the data file."""
    return f"{name}_{version}.{suffix}"


def latest_name(name: str, suffix: str) -> str:
    """Return the name of the link to the newest version."""
    return f"{name}_latest.{suffix}"


def split_data_file_name(file_name: str) -> DataFileName | None:
    """Take a data file's name apart, ``None`` when it is not one of ours."""
    match = next(filter(None, (pattern.fullmatch(file_name) for pattern in _DATA_FILES)), None)
    if match is None:
        return None
    try:
        return DataFileName(check_name(match["name"]), check_version(match["version"]), match["suffix"])
    except UsageError:
        return None
