"""Secrets are found in foreign text by their value, in every spelling that other programs use.

By value and not by the shape of a URL: shapes miss ``postgresql+psycopg://``,
a password with a colon, ``PGPASSWORD=`` and libpq's own quotations (FAULTS 31).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: Passwords up to this length are hidden only where a password stands (``:pw@``,
#: ``password=pw``): hiding every "a" would leave no readable text.
SHORT_PASSWORD_CHARACTERS = 3


def secret_patterns(secrets: Iterable[str], shown: Collection[str]) -> tuple[re.Pattern[str], ...]:
    """Return patterns that match secrets in text.

    Args:
        secrets: Passwords and the like, none empty.
        shown: Words in lower case that are printed anyway, such as the user's name: a
            secret that equals one is matched only where a password stands.

    Returns:
        One or more for each secret.
    """
    patterns: list[re.Pattern[str]] = []
    for secret in secrets:
        forms = "|".join(sorted(map(_form_pattern, _forms(secret)), key=len, reverse=True))
        if len(secret) <= SHORT_PASSWORD_CHARACTERS or secret.lower() in shown:
            patterns.append(re.compile(rf"(?<=:)(?:{forms})(?=@)"))
            patterns.append(re.compile(rf"(?i:(?<=password=)|(?<=password: ))['\"]?(?:{forms})(?!\w)"))
        else:
            patterns.append(re.compile(forms))
    return tuple(patterns)


def _form_pattern(form: str) -> str:
    # The digits of a percent-encoding may be of either case.
    return re.sub(r"%[0-9A-Fa-f]{2}", lambda match: f"(?i:{match.group()})", re.escape(form))


def _forms(secret: str) -> set[str]:
    """Return the spellings in which a secret turns up in other programs' texts."""
    encoded = {quote(secret, safe=""), quote(secret), quote(secret, safe=" +"), quote(secret, safe=" +/")}
    everything = "".join(f"%{byte:02X}" for byte in secret.encode("utf-8", errors="surrogateescape"))
    forms = {secret, *encoded, everything, quote(secret, safe="").replace("%20", "+")}
    forms |= {quote(form, safe="") for form in encoded}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    forms |= {secret.replace("'", "''"), secret.replace("\\", "\\\\").replace("'", "\\'")}
    forms.add(secret.replace("\\", "\\\\").replace(":", "\\:"))
    return forms
