"""What the campaigns are told by the environment.

``KEIKAKU_CAMPAIGN_SEED`` repeats a run, ``KEIKAKU_CAMPAIGN_SECONDS`` and ``KEIKAKU_CAMPAIGN_ROUNDS``
make it shorter or longer, ``KEIKAKU_CAMPAIGN_ROUND`` plays one round alone.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CAMPAIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass
class Campaign:
    """How long, with which dice, and what came of it."""

    #: Variables by their name without ``KEIKAKU_CAMPAIGN_``.
    given: Mapping[str, str]
    #: Decides everything but the scheduler of the machine.
    seed: str
    #: The short run of every commit, which is always the same.
    is_smoke: bool
    #: What was done, and how it ended.
    outcomes: Counter[str] = field(default_factory=Counter)

    def seconds(self, usual: float, *, smoke: float) -> float:
        """How long a storm lasts."""
        return smoke if self.is_smoke else float(self.given.get("SECONDS") or usual)

    def rounds(self, usual: int, *, smoke: int) -> list[int]:
        """Numbers of the rounds to play."""
        if self.is_smoke:
            return list(range(smoke))
        if "ROUND" in self.given:
            return [int(self.given["ROUND"])]
        return list(range(int(self.given.get("ROUNDS") or usual)))

    def dice(self, *path: object) -> str:
        """A seed for one part of the campaign."""
        return "/".join(map(str, (self.seed, *path)))

    def said(self, number: int) -> str:
        """How to play a round again."""
        return f"KEIKAKU_CAMPAIGN_SEED={self.seed} KEIKAKU_CAMPAIGN_ROUND={number}"


@pytest.fixture(
    params=[pytest.param(True, id="smoke"), pytest.param(False, marks=pytest.mark.slow, id="full")]
)
def campaign(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Campaign]:
    """The options of this run; a new seed unless one was given."""
    given = request.config.stash.get(CAMPAIGN, {})
    seed = given.get("SEED") or ("smoke" if request.param else secrets.token_hex(4))
    campaign, begun = Campaign(given, seed, bool(request.param)), time.monotonic()
    yield campaign
    lines = [f"{request.node.name}: KEIKAKU_CAMPAIGN_SEED={seed}, {time.monotonic() - begun:.0f} s"]
    lines += [f"  {count:5} {outcome}" for outcome, count in sorted(campaign.outcomes.items())]
    record_property("campaign", "\n".join(lines))
