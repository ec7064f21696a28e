"""Checking the audit log as a whole: every line is there, unchanged and in its place.

What is found without help from outside: a line that was changed, deleted,
inserted, moved or cut off. What is not: the whole log, head included, put back
to an earlier state of itself, or taken away. For that, an anchor (number and
digest of a line, noted elsewhere) is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from keikaku_snapshots.patches.audit_crypto import GENESIS, Line, parts_of, signed_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keikaku_snapshots.patches.audit_key import AuditKey

    FindKey: TypeAlias = Callable[[str], AuditKey | None]

Kind: TypeAlias = Literal["changed", "missing", "inserted", "key", "head", "checkpoint", "anchor"]


@dataclass(frozen=True, slots=True)
class AuditProblem:
    """Something in the audit log that is not as it was written."""

    #: The line, or the first of the lines, that it is about; None for the log as a whole.
    number: int | None
    #: What kind of thing.
    kind: Kind
    #: In words.
    what: str

    def __str__(self) -> str:
        return self.what if self.number is None else f"line {self.number}: {self.what}"


@dataclass(frozen=True, slots=True)
class Mark:
    """A head or checkpoint whose signature is right."""

    #: Number of the line that it is about.
    number: int
    #: Digest of that line.
    digest: str
    #: Id of the key of the line after it.
    next_key: str
    #: Id of the key that it was signed with.
    key_id: str


@dataclass(frozen=True, slots=True)
class _State:
    """What the next line must continue."""

    number: int
    digest: str
    #: Key that it must have; empty for any.
    next_key: str
    #: False when the line before was damaged, so that its digest says nothing.
    trusted: bool


def read_mark(text: str, kind: str, find_key: FindKey) -> Mark | AuditProblem:
    """Read a head or checkpoint.

    Args:
        text: The mark.
        kind: ``head`` or ``checkpoint``.
        find_key: Gives the key of an id.

    Returns:
        The mark, or what is wrong with it.
    """
    named: Kind = "head" if kind == "head" else "checkpoint"
    parts = parts_of(text) or {}
    key = find_key(str(parts.get("key")))
    if key is None and isinstance(parts.get("key"), str):
        return AuditProblem(None, "key", _unknown_key(f"the {kind}", parts["key"]))
    signed = signed_parts(text, key) if key else None
    if signed is None or signed.get("kind") != kind:
        return AuditProblem(None, named, f"the {kind} of the log was changed")
    return Mark(signed["n"], signed["hash"], signed["next"], signed["key"])


def check_chain(
    lines: Iterable[Line], checkpoint: str | None, head: str | None, find_key: FindKey, anchor: str = ""
) -> list[AuditProblem]:
    """Check the log.

    Args:
        lines: All its lines by number.
        checkpoint: The signed checkpoint, if old months were dropped.
        head: The signed head, if there is one.
        find_key: Gives the key of an id, or None.
        anchor: ``NUMBER:DIGEST`` of a line, noted elsewhere before.

    Returns:
        What is wrong; nothing when all is well.
    """
    return list(_check(lines, checkpoint, head, find_key, anchor))


def _check(
    lines: Iterable[Line], checkpoint: str | None, head: str | None, find_key: FindKey, anchor: str
) -> Iterator[AuditProblem]:
    state = _State(0, GENESIS, "", trusted=True)
    start = 0
    if checkpoint is not None:
        mark = read_mark(checkpoint, "checkpoint", find_key)
        if isinstance(mark, AuditProblem):
            yield mark
            state = _State(-1, "", "", trusted=False)
        else:
            state, start = _State(mark.number, mark.digest, mark.next_key, trusted=True), mark.number
    wanted, _, noted = anchor.partition(":")
    compared = not anchor
    unknown = _UnknownKeys()
    for line in lines:
        if anchor and str(line.number) == wanted:
            compared = True
            if line.digest != noted:
                yield AuditProblem(line.number, "anchor", "is not the line that was noted elsewhere")
        found, state = _next(line, state, find_key, unknown)
        yield from found
    yield from unknown.problems()
    yield from _check_end(state, head, find_key, start)
    if not compared and (not wanted.isdigit() or int(wanted) > start):
        yield AuditProblem(
            None,
            "anchor",
            f"line {wanted}, which was noted elsewhere, is not in the log (cut off or replaced)",
        )


class _UnknownKeys:
    """Lines that cannot be checked for want of their key, told together for each key."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[int, int, int]] = {}

    def add(self, key_id: str, number: int) -> None:
        first, _, count = self._lines.get(key_id, (number, number, 0))
        self._lines[key_id] = (first, number, count + 1)

    def problems(self) -> Iterator[AuditProblem]:
        for key_id, (first, last, count) in self._lines.items():
            which = f"lines {first} to {last} ({count})" if count > 1 else "it"
            yield AuditProblem(first, "key", _unknown_key(which, key_id))


def _unknown_key(what: str, key_id: str) -> str:
    return f"{what} cannot be checked or read: the key {key_id} is not among those given"


def _next(
    line: Line, state: _State, find_key: FindKey, unknown: _UnknownKeys
) -> tuple[list[AuditProblem], _State]:
    """Check a line and tell what the one after it must continue."""
    problems: list[AuditProblem] = []
    expected = state.number + 1
    damaged = _State(max(line.number, state.number), line.digest, "", trusted=False)
    if state.number >= 0 and line.number < expected:
        return [AuditProblem(line.number, "inserted", "does not belong to the log")], state
    gap = state.number >= 0 and line.number > expected
    if gap:
        until = f" to {line.number - 1}" if line.number - 1 > expected else ""
        problems.append(AuditProblem(expected, "missing", f"missing{until}"))
    key = find_key(line.key_id)
    parts = parts_of(line.text)
    if key is None and parts is not None and parts.get("key") == line.key_id:
        unknown.add(line.key_id, line.number)
        if not gap and state.trusted and parts.get("prev") != state.digest:
            problems.append(AuditProblem(line.number, "changed", "does not continue the line before it"))
        # What it says of the key after it cannot be believed.
        return problems, _State(line.number, line.digest, "", trusted=True)
    signed = signed_parts(line.text, key) if key else None
    if signed is None or not _fits(signed, line):
        problems.append(AuditProblem(line.number, "changed", "was changed, or moved from another place"))
        return problems, damaged
    if state.trusted and not gap and signed["prev"] != state.digest:
        problems.append(AuditProblem(line.number, "changed", "does not continue the line before it"))
    if state.trusted and not gap and state.next_key not in {"", line.key_id}:
        problems.append(
            AuditProblem(
                line.number, "key", "has another key, although the line before it says nothing of it"
            )
        )
    return problems, _State(line.number, line.digest, signed.get("next", line.key_id), trusted=True)


def _fits(signed: dict[str, Any], line: Line) -> bool:
    """Tell whether the columns beside a line say what the line says."""
    return bool(
        signed["n"] == line.number and signed["month"] == f"{line.month:%Y-%m}" and line.month.day == 1
    )


def _check_end(state: _State, head: str | None, find_key: FindKey, start: int) -> Iterator[AuditProblem]:
    if head is None:
        if state.number > 0 or start > 0:
            yield AuditProblem(
                None, "head", "the head of the log is missing: lines may be missing at its end"
            )
        return
    mark = read_mark(head, "head", find_key)
    if isinstance(mark, AuditProblem):
        yield mark
    elif mark.number > state.number:
        until = f" to {mark.number}" if mark.number > state.number + 1 else ""
        yield AuditProblem(state.number + 1, "missing", f"missing{until}, at the end of the log")
    elif mark.number < state.number:
        yield AuditProblem(
            mark.number + 1,
            "head",
            "is behind the end of the log that its head names: one of them is not genuine",
        )
    elif state.trusted and mark.digest != state.digest:
        yield AuditProblem(state.number, "head", "is not the last line that the head of the log names")
