"""The deadline notification: who must be told of which support plans, asked of the database in sets.

Every morning the application mails all staff whose offices have a plan cycle that ends soon.
Asked one office and one recipient at a time, 100 offices are 11,000 queries; here
`OFFICES_A_PAGE` offices are three, whatever the number of staff and recipients.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypedDict, overload

from keikaku_snapshots.datasets.steps import Execute, Steps
from keikaku_snapshots.datasets.targets import is_async, run
from keikaku_snapshots.errors import ParameterTypeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from uuid import UUID

    from keikaku_snapshots.datasets.attempts import Attempt
    from keikaku_snapshots.datasets.bulk import AsyncDatabase, SyncDatabase

__all__ = ["DeadlineAlert", "DeadlineMail", "DeadlineResult", "send_deadline_alert_emails"]

_log = logging.getLogger("keikaku_snapshots.perf")

#: Offices asked for at a time: bounds the memory; 200 offices are 2,000 mails of 100 lines.
OFFICES_A_PAGE = 200
#: Days before a deadline at which staff is told who has not said otherwise.
USUAL_THRESHOLD_DAYS = 30
#: A larger threshold is taken for this one; a date more than a century ahead is no deadline.
LONGEST_THRESHOLD_DAYS = 36_500

_OFFICES = """
SELECT id FROM offices
WHERE NOT is_deleted AND ($1::uuid IS NULL OR id > $1::uuid)
ORDER BY id LIMIT $2::bigint"""

# A staff of several offices gets one mail, with the page of the first of them.
_STAFF = """
SELECT s.email, s.full_name, array_agg(link.office_id ORDER BY link.office_id),
       CASE WHEN jsonb_typeof(s.notification_preferences -> 'email_threshold_days') = 'number'
            THEN greatest(0, least($3::int,
                 floor((s.notification_preferences ->> 'email_threshold_days')::numeric)))::int
            ELSE $2::int END
FROM staffs s
JOIN office_staffs link ON link.staff_id = s.id
JOIN offices o ON o.id = link.office_id AND NOT o.is_deleted
WHERE NOT s.is_deleted
  AND s.notification_preferences -> 'email_notification' = 'true'::jsonb
  AND s.id IN (SELECT staff_id FROM office_staffs WHERE office_id = ANY($1::uuid[]))
GROUP BY s.id
HAVING (array_agg(link.office_id ORDER BY link.office_id))[1] = ANY($1::uuid[])
ORDER BY 3, s.id"""

_DUE = """
SELECT o.id, o.name, r.full_name, c.end_date
FROM support_plan_cycles c
JOIN individual_support_plans p ON p.id = c.individual_support_plan_id
JOIN welfare_recipients r ON r.id = p.welfare_recipient_id
JOIN offices o ON o.id = p.office_id
WHERE p.office_id = ANY($1::uuid[]) AND c.is_latest_cycle AND c.status = 'active'
  AND c.end_date BETWEEN $2::date AND $2::date + $3::int
ORDER BY o.id, c.end_date, c.id"""


@dataclass(frozen=True, slots=True)
class DeadlineAlert:
    """One plan cycle that ends soon."""

    #: Name of the office.
    office: str
    #: Full name of the welfare recipient.
    recipient: str
    #: The day on which the cycle ends.
    end_date: date
    #: Days from the reference date until then.
    days_left: int


@dataclass(frozen=True, slots=True)
class DeadlineMail:
    """What one member of staff is told."""

    #: Address of the staff.
    to: str
    #: Full name of the staff.
    name: str
    #: The cycles, by office and then by day.
    alerts: tuple[DeadlineAlert, ...]

    @property
    def subject(self) -> str:
        """The subject, in Japanese."""
        return f"【個別支援計画】更新期限のお知らせ({len(self.alerts)}件)"

    @property
    def body(self) -> str:
        """The text, in Japanese: one line for each cycle."""
        lines = [f"{self.name} 様", "", "次の個別支援計画の更新期限が近づいています。", ""]
        office = None
        for alert in self.alerts:
            if alert.office != office:
                office = alert.office
                lines.append(f"■ {office}")
            lines.append(f"  {alert.end_date:%Y-%m-%d} (あと{alert.days_left}日) {alert.recipient} 様")
        return "\n".join([*lines, ""])


class DeadlineResult(TypedDict):
    """What `send_deadline_alert_emails` did."""

    #: Mails sent; with ``dry_run`` those that would have been.
    email_sent: int
    #: Mails that ``send`` raised an error for.
    email_failed: int
    #: Offices that were looked at.
    offices: int
    #: Lines of all mails: a cycle counts for each staff that is told.
    alerts: int
    #: Queries that were run.
    queries: int
    #: Characters of all subjects and texts.
    characters: int
    #: Whether nothing was sent.
    dry_run: bool


@overload
def send_deadline_alert_emails(
    db: SyncDatabase,
    dry_run: bool = True,
    *,
    send: Callable[[DeadlineMail], object] | None = None,
    reference_date: date | None = None,
    schema: str | None = None,
) -> DeadlineResult: ...
@overload
def send_deadline_alert_emails(
    db: AsyncDatabase,
    dry_run: bool = True,
    *,
    send: Callable[[DeadlineMail], object] | None = None,
    reference_date: date | None = None,
    schema: str | None = None,
) -> Awaitable[DeadlineResult]: ...
def send_deadline_alert_emails(
    db: Any,
    dry_run: bool = True,
    *,
    send: Callable[[DeadlineMail], object] | None = None,
    reference_date: date | None = None,
    schema: str | None = None,
) -> Any:
    """Tell all staff of plan cycles that end within the days they have asked for.

    Each staff of an office that is not deleted, whose ``notification_preferences`` have
    ``email_notification`` on, gets one mail about the active latest cycles of the offices they
    belong to that end within their ``email_threshold_days`` (30 when they say nothing); who has
    no such cycle gets none. 100 generated offices are 1,000 mails and three queries.

    Args:
        db: URL, connection or session, see `SyncDatabase` and `AsyncDatabase`. The caller's
            transaction stays open and unchanged.
        dry_run: Build the mails but send none.
        send: Sends one mail; may be a coroutine function where `db` is asynchronous. Called
            between the queries, not inside a transaction of ours. An error of it is logged and
            counted, and the other mails are sent.
        reference_date: The day that counts as today; today (UTC) when None.
        schema: The tables' schema; the search path decides when None.

    Returns:
        A `DeadlineResult`, a dict with ``email_sent``, ``email_failed``, ``offices``, ``alerts``,
        ``queries``, ``characters`` and ``dry_run``; an awaitable of it when `db` is asynchronous.

    Raises:
        UsageError: ``dry_run=False`` without `send`, or a table is missing (a `ValueError`).
        ParameterTypeError: A parameter has the wrong type (a `TypeError`).
    """
    if not isinstance(dry_run, bool):
        raise ParameterTypeError(f"dry_run must be True or False, not {dry_run!r}")
    if not dry_run and send is None:
        raise UsageError(
            "nothing was said about how mails are sent", hint="Pass send=, a function that sends one mail."
        )
    day: object = reference_date or datetime.now(UTC).date()
    if not isinstance(day, date) or isinstance(day, datetime):
        raise ParameterTypeError(f"reference_date must be a date, not {type(day).__name__}: {day!r}")
    round_ = _Round(db, day, None if dry_run else send, schema)
    return round_.run_async() if is_async(db) else round_.run_sync()


@dataclass(frozen=True, slots=True)
class _Page:
    """What the database said of some offices."""

    #: Their ids.
    offices: list[UUID]
    #: Address, name, ids of all their offices, and days of each staff that wants mail.
    staffs: list[tuple[Any, ...]]
    #: Office, its name, recipient and last day of each cycle that ends soon.
    due: list[tuple[Any, ...]]


class _Round:
    """One round of notifications; what differs between sync and async callers is who waits."""

    def __init__(
        self, db: Any, day: date, send: Callable[[DeadlineMail], Any] | None, schema: str | None
    ) -> None:
        self._db, self._day, self._send, self._schema = db, day, send, schema
        self._last: UUID | None = None
        self._done = False
        self.result = DeadlineResult(
            email_sent=0, email_failed=0, offices=0, alerts=0, queries=0, characters=0, dry_run=send is None
        )

    def run_sync(self) -> DeadlineResult:
        if self._send is not None and inspect.iscoroutinefunction(self._send):
            raise ParameterTypeError("send is a coroutine function, which needs an asynchronous db")
        while not self._done:
            for mail in self._turn(run(self._db, self._page, schema=self._schema)):
                try:
                    if self._send is not None:
                        self._send(mail)
                except Exception as error:  # noqa: BLE001 - one address must not stop the others
                    self._failed(error)
                else:
                    self._sent(mail)
        return self.result

    async def run_async(self) -> DeadlineResult:
        while not self._done:
            for mail in self._turn(await run(self._db, self._page, schema=self._schema)):
                try:
                    waiting = self._send(mail) if self._send is not None else None
                    if inspect.isawaitable(waiting):
                        await waiting
                except Exception as error:  # noqa: BLE001 - as above
                    self._failed(error)
                else:
                    self._sent(mail)
        return self.result

    def _sent(self, mail: DeadlineMail) -> None:
        self.result["email_sent"] += 1
        self.result["alerts"] += len(mail.alerts)
        self.result["characters"] += len(mail.subject) + len(mail.body)

    def _failed(self, error: Exception) -> None:
        self.result["email_failed"] += 1
        # Without the address: it is personal data.
        _log.warning("a mail could not be sent: %s", type(error).__name__)

    def _page(self, _: Attempt) -> Steps[_Page]:
        """Ask for the next offices; done again from its beginning when a connection is lost."""
        found = yield from self._ask(_OFFICES, self._last, OFFICES_A_PAGE)
        offices = [office for (office,) in found]
        limits = (USUAL_THRESHOLD_DAYS, LONGEST_THRESHOLD_DAYS)
        staffs = (yield from self._ask(_STAFF, offices, *limits)) if offices else []
        due: list[tuple[Any, ...]] = []
        if staffs:
            theirs = sorted({office for *_, office_ids, _ in staffs for office in office_ids})
            due = yield from self._ask(_DUE, theirs, self._day, max(days for *_, days in staffs))
        return _Page(offices, staffs, due)

    def _turn(self, page: _Page) -> Iterator[DeadlineMail]:
        """Go on behind these offices; their mails."""
        self._done = len(page.offices) < OFFICES_A_PAGE
        self._last = page.offices[-1] if page.offices else None
        self.result["offices"] += len(page.offices)
        return self._mails(page)

    def _ask(self, sql: str, *parameters: object) -> Steps[list[tuple[Any, ...]]]:
        self.result["queries"] += 1
        rows: list[tuple[Any, ...]] = yield Execute(sql, parameters)
        return rows

    def _mails(self, page: _Page) -> Iterator[DeadlineMail]:
        by_office: dict[UUID, list[DeadlineAlert]] = {}
        for office, name, recipient, end in page.due:
            alert = DeadlineAlert(name, recipient, end, (end - self._day).days)
            by_office.setdefault(office, []).append(alert)
        for email, name, offices, days in page.staffs:
            alerts = tuple(
                alert for office in offices for alert in by_office.get(office, ()) if alert.days_left <= days
            )
            if alerts:
                yield DeadlineMail(email, name, alerts)
