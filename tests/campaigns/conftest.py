"""What the campaigns are told by the environment.

``KEIKAKU_CAMPAIGN_SEED`` repeats a run, ``KEIKAKU_CAMPAIGN_SECONDS`` and ``KEIKAKU_CAMPAIGN_ROUNDS``
make it shorter or longer, ``KEIKAKU_CAMPAIGN_ROUND`` plays one round alone.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CAMPAIGN

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Campaign:
    """How long, and with which dice."""

    #: Variables by their name without ``KEIKAKU_CAMPAIGN_``.
    given: Mapping[str, str]
    #: Decides everything but the scheduler of the machine.
    seed: str

    def seconds(self, default: float) -> float:
        """How long a storm lasts."""
        return float(self.given.get("SECONDS", default))

    def rounds(self, default: int) -> list[int]:
        """Numbers of the rounds to play."""
        if "ROUND" in self.given:
            return [int(self.given["ROUND"])]
        return list(range(int(self.given.get("ROUNDS", default))))


@pytest.fixture
def campaign(pytestconfig: pytest.Config) -> Campaign:
    """The options of this run; a new seed unless one was given."""
    given = pytestconfig.stash.get(CAMPAIGN, {})
    return Campaign(given, given.get("SEED") or secrets.token_hex(4))
