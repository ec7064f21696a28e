"""The process that sends one message and ends.

A process of its own, since a service that hangs can be left behind with it, the
memory of the libraries does not count as that of the patch, and nothing that
they log (URLs with tokens, at some levels) reaches a log of ours. Only words
from the list below come back.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Final

#: Holds what is to be sent; the environment of a process is seen by its own account only.
VARIABLE: Final = "KEIKAKU_MESSAGE"
DELIVERED: Final = "delivered"
UNKNOWN_URL: Final = "its URL is none that the library knows"
NOT_INSTALLED: Final = "the library that sends is not installed"
#: What the libraries log, and what we say of it. Nothing else of it is repeated.
_REASONS: Final = (
    (r"\b(?:error|status|code)[ =:]+([45]\d\d)\b", "the service answered with status {}"),
    (r"[Cc]onnection refused|Errno 111|Errno 61\b", "connection refused"),
    (r"(?i)timed? ?out", "no answer in time"),
    (r"(?i)name or service not known|nodename nor servname|name resolution|getaddrinfo", "host not found"),
    (r"(?i)certificate|\bssl|\btls", "the TLS connection was not accepted"),
    (r"(?i)authentication|\b535\b|unauthori[sz]ed", "the login was not accepted"),
    (r"(?i)connection (?:aborted|reset|unexpectedly closed)|remote end closed", "the connection was cut"),
)
_OTHER_REASON: Final = "the service did not take it"


def is_ours(said: str) -> bool:
    """Tell whether an answer consists of words of this module."""
    texts = {DELIVERED, UNKNOWN_URL, NOT_INSTALLED, _OTHER_REASON, *(reason for _, reason in _REASONS)}
    return re.sub(r"(?<=status )[45]\d\d$", "{}", said) in texts


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def reason_of(texts: list[str]) -> str:
    """Say in words of ours why something was not delivered.

    Args:
        texts: What the library logged.

    Returns:
        The reason, with nothing of these texts but a status of three digits.
    """
    for pattern, reason in _REASONS:
        for text in texts:
            found = re.search(pattern, text)
            if found:
                return reason.format(*found.groups())
    return _OTHER_REASON


def send(url: str, title: str, body: str, *, urgent: bool) -> str:
    """Send a message.

    Args:
        url: Where to, as apprise writes it.
        title: One line.
        body: Plain text.
        urgent: Whether it is shown as a failure.

    Returns:
        DELIVERED, or why not.
    """
    try:
        import apprise
    except ImportError:
        return NOT_INSTALLED
    collector = _Collector()
    logger = logging.getLogger("apprise")
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    sender = apprise.Apprise(asset=apprise.AppriseAsset(app_id="keikaku_snapshots", app_desc="data patches"))
    if not sender.add(url):
        return UNKNOWN_URL
    kind = apprise.NotifyType.FAILURE if urgent else apprise.NotifyType.INFO
    sent = sender.notify(body=body, title=title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT)
    return DELIVERED if sent else reason_of(collector.texts)


def main() -> None:
    """Send what the environment says, and write how it went to standard output."""
    message = json.loads(os.environ.pop(VARIABLE))
    # A library that prints must not spoil the answer.
    answer, sys.stdout = sys.stdout, sys.stderr
    said = send(message["url"], message["title"], message["body"], urgent=message["urgent"])
    answer.write(said)
    answer.flush()


if __name__ == "__main__":
    main()
