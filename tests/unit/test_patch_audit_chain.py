"""The chain of the audit log: whatever is done to what is stored, it is found."""

from __future__ import annotations

import dataclasses
import functools
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from keikaku_snapshots.errors import ConfigurationError
from keikaku_snapshots.patches.audit_chain import AuditProblem, check_chain
from keikaku_snapshots.patches.audit_crypto import GENESIS, Line, payload_of, seal, sign_mark, signed_parts
from keikaku_snapshots.patches.audit_key import AuditKey, KeyRing

OLD, NEW, FOREIGN = (AuditKey.of(bytes([number]) * 32) for number in (1, 2, 3))
RING = KeyRing(NEW, (OLD,), "the test")
BEGAN = datetime(2026, 1, 20, tzinfo=UTC)


@dataclasses.dataclass(frozen=True)
class Log:
    """A log as it is stored."""

    lines: tuple[Line, ...]
    checkpoint: str | None
    head: str | None

    def problems(self, anchor: str = "", ring: KeyRing = RING) -> list[AuditProblem]:
        """Check it."""
        ordered = sorted(self.lines, key=lambda line: line.number)
        return check_chain(ordered, self.checkpoint, self.head, ring.find, anchor)


@functools.cache
def a_log(*, encrypt: bool, count: int = 9, rotated_at: int = 5, dropped: int = 0) -> Log:
    """A log of so many lines, a fortnight apart, whose key changes, without those that were dropped."""
    lines: list[Line] = []
    for number in range(1, count + 1):
        lines.append(
            seal(
                {"event": "run_began", "facts": {"patch": "価格改定", "number": number}},
                number=number,
                previous=lines[-1].digest if lines else GENESIS,
                at=BEGAN + timedelta(days=14 * number),
                key=OLD if number <= rotated_at else NEW,
                encrypt=encrypt,
                next_key=NEW.key_id if number == rotated_at else "",
            )
        )
    mark = functools.partial(sign_mark, next_key=NEW.key_id, key=NEW)
    last = lines[dropped - 1]
    checkpoint = mark("checkpoint", number=dropped, digest=last.digest) if dropped else None
    if dropped and dropped < rotated_at:
        checkpoint = sign_mark("checkpoint", number=dropped, digest=last.digest, next_key=OLD.key_id, key=NEW)
    return Log(tuple(lines[dropped:]), checkpoint, mark("head", number=count, digest=lines[-1].digest))


LOGS = st.builds(a_log, encrypt=st.booleans(), dropped=st.sampled_from([0, 3, 5, 7]))


@given(LOGS)
def test_a_log_as_it_was_written_has_no_problem(log: Log) -> None:
    """Also with two keys, and with old months dropped."""
    assert log.problems() == []


def _changed_text(draw: st.DrawFn, text: str) -> str:
    place = draw(st.integers(0, len(text) - 1))
    how = draw(st.sampled_from(["replace", "delete", "insert", "cut"]))
    letter = draw(st.characters(codec="utf-8", exclude_characters="\0"))
    changed = {
        "replace": text[:place] + letter + text[place + 1 :],
        "delete": text[:place] + text[place + 1 :],
        "insert": text[:place] + letter + text[place:],
        "cut": text[:place],
    }[how]
    return changed if changed != text else text + " "


@st.composite
def mutations(draw: st.DrawFn) -> tuple[Log, Log]:
    """A log, and the same after one thing was done to what is stored."""
    log = draw(LOGS)
    lines = list(log.lines)
    place = draw(st.integers(0, len(lines) - 1))
    line = lines[place]
    replaced = functools.partial(dataclasses.replace, line)
    kind = draw(
        st.sampled_from(
            [
                "text",
                "number",
                "month",
                "key",
                "delete",
                "swap",
                "copy",
                "cut",
                "behead",
                "head",
                "checkpoint",
            ]
        )
    )
    if kind == "text":
        lines[place] = replaced(text=_changed_text(draw, line.text))
    elif kind == "number":
        taken = {other.number for other in lines}
        lines[place] = replaced(number=draw(st.integers(-3, 30).filter(lambda n: n not in taken)))
    elif kind == "month":
        other = draw(st.dates(date(2025, 1, 1), date(2027, 1, 1)).filter(lambda day: day != line.month))
        lines[place] = replaced(month=other)
    elif kind == "key":
        other_id = draw(st.sampled_from([OLD.key_id, NEW.key_id, FOREIGN.key_id, ""]))
        lines[place] = replaced(key_id=other_id if other_id != line.key_id else "x")
    elif kind == "delete":
        del lines[place]
    elif kind == "swap":
        second = draw(st.integers(0, len(lines) - 1).filter(lambda n: n != place))
        lines[place] = replaced(text=lines[second].text)
        lines[second] = dataclasses.replace(lines[second], text=line.text)
    elif kind == "copy":
        taken = {other.number for other in lines}
        lines.append(replaced(number=draw(st.integers(-3, 30).filter(lambda n: n not in taken))))
    elif kind == "cut":
        del lines[place:]
    elif kind == "behead":
        del lines[: place + 1]
    marks = {"head": log.head, "checkpoint": log.checkpoint}
    if kind in marks:
        text = marks[kind]
        gone = text is None or draw(st.booleans())
        marks[kind] = None if gone or text is None else _changed_text(draw, text)
        if text is None:
            marks[kind] = log.head
    return log, Log(tuple(lines), marks["checkpoint"], marks["head"])


@settings(max_examples=200)
@given(mutations())
def test_any_single_mutation_of_what_is_stored_is_found(pair: tuple[Log, Log]) -> None:
    """One letter, one column, one line, one mark: nothing passes."""
    before, after = pair

    assert after != before
    assert after.problems() != []


@given(LOGS, st.integers(1, 8))
def test_the_whole_log_put_back_is_found_by_an_anchor_only(log: Log, cut: int) -> None:
    """Lines and head of an earlier day fit together; what was noted elsewhere does not."""
    last = log.lines[-1]
    lines = log.lines[: -min(cut, len(log.lines) - 1)]
    key = next(key for key in (OLD, NEW) if key.key_id == lines[-1].key_id)
    signed = signed_parts(lines[-1].text, key)
    assert signed is not None
    head = sign_mark(
        "head",
        number=lines[-1].number,
        digest=lines[-1].digest,
        next_key=signed.get("next", key.key_id),
        key=key,
    )
    earlier = Log(lines, log.checkpoint, head)

    assert earlier.problems() == []
    assert [problem.kind for problem in earlier.problems(f"{last.number}:{last.digest}")] == ["anchor"]
    assert log.problems(f"{last.number}:{last.digest}") == []
    assert log.problems(f"{last.number}:{'0' * 64}") != []


def test_without_the_old_key_its_lines_are_named_together() -> None:
    """They cannot be checked, and that is said once, not five times."""
    (problem,) = a_log(encrypt=True).problems(ring=KeyRing(NEW, (), "the test"))

    assert (problem.number, problem.kind) == (1, "key")
    assert "lines 1 to 5 (5) cannot be checked or read" in str(problem)
    assert OLD.key_id in str(problem)


def test_a_line_of_another_key_is_no_continuation() -> None:
    """Whoever knows an old key cannot go on with it after the log was handed over."""
    log = a_log(encrypt=False)
    last = log.lines[-1]
    forged = seal({"event": "x"}, number=10, previous=last.digest, at=BEGAN, key=OLD, encrypt=False)
    head = sign_mark("head", number=10, digest=forged.digest, next_key=OLD.key_id, key=OLD)

    (problem,) = Log((*log.lines, forged), None, head).problems()

    assert (problem.number, problem.kind) == (10, "key")


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.uuids(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_facts_can_be_written_and_read(facts: dict[str, Any], encrypt: bool) -> None:
    """Times, UUIDs, NaN and half characters become texts; the line is signed JSON on one line."""
    line = seal({"facts": facts}, number=1, previous=GENESIS, at=BEGAN, key=NEW, encrypt=encrypt)

    signed = signed_parts(line.text, NEW)
    assert signed is not None
    assert set(payload_of(signed, NEW)["facts"]) == {
        name.encode("utf-8", "replace").decode() for name in facts
    }
    assert "\n" not in line.text
    assert json.loads(line.text)["n"] == 1


def test_an_encrypted_line_shows_nothing_of_what_it_says() -> None:
    """But its number, its month and which key it has."""
    line = seal({"event": "S3cretCanary"}, number=1, previous=GENESIS, at=BEGAN, key=NEW, encrypt=True)

    assert "S3cretCanary" not in line.text


def test_without_the_library_encryption_is_refused_and_plain_text_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)

    with pytest.raises(ConfigurationError) as caught:
        seal({}, number=1, previous=GENESIS, at=BEGAN, key=NEW, encrypt=True)

    assert "pip install 'keikaku_snapshots[audit]'" in str(caught.value)
    assert seal({}, number=1, previous=GENESIS, at=BEGAN, key=NEW, encrypt=False).number == 1
