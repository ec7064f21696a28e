"""Which channel gets which message, and when: decisions without a database or a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keikaku_snapshots.patches.settings import Channel, NotifySettings


@dataclass(frozen=True, slots=True)
class OpenMessage:
    """A message that is not over, with what became of it so far."""

    #: Its number in the outbox.
    number: int
    #: What it is about.
    event: str
    #: Whether somebody must look at once.
    urgent: bool
    #: Seconds since it was written.
    age_s: float
    #: Seconds since it was last given to a further channel; its age, when it never was.
    waited_s: float
    #: Channels that it was given to.
    channels: tuple[str, ...]
    #: Channels that took it.
    delivered: tuple[str, ...]
    #: Channels that were given up.
    dead: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a message."""

    #: Channels that it is given to now.
    give_to: tuple[str, ...] = ()
    #: Whether it goes to a further channel because the others did not take it.
    escalated: bool = False
    #: Whether it is over.
    close: bool = False


def url_of(channel: Channel, environ: Mapping[str, str]) -> str:
    """Return the URL of a channel; empty while it is switched off."""
    return environ.get(channel.url_variable, "").strip()


def check_channels(settings: NotifySettings, environ: Mapping[str, str]) -> list[str]:
    """Find what makes it impossible to send as the configuration asks.

    An unreachable channel is not among it: that is reported when it is found, and never a reason not to run.

    Args:
        settings: The channels.
        environ: Where their URLs are.

    Returns:
        One line for each problem, without a URL; nothing when all is well.
    """
    problems = [
        f"{channel.name}: required, but the environment variable {channel.url_variable} is not set"
        for channel in settings.channels
        if channel.required and not url_of(channel, environ)
    ]
    required = [channel.name for channel in settings.channels if channel.required]
    if required and not can_send():
        problems.append(f"{required[0]}: sending needs the extra [notify]: {HOW_TO_INSTALL}")
    return problems


#: How to get the library that sends.
HOW_TO_INSTALL = "pip install 'keikaku_snapshots[notify]'"


def can_send() -> bool:
    """Tell whether the library that sends is installed; it is not imported here."""
    import importlib.util

    return importlib.util.find_spec("apprise") is not None


def require_channels(settings: NotifySettings, environ: Mapping[str, str]) -> None:
    """Make sure that required channels are switched on.

    Raises:
        ConfigurationError: One is not.
    """
    problems = check_channels(settings, environ)
    if problems:
        raise ConfigurationError(
            "a notification channel that is required cannot be used",
            found="\n".join(problems),
            hint="Set the variable to the channel's URL, or set required: false.",
            hint_ja="環境変数にチャンネルの URL を設定するか、required: false にしてください。",
        )


def accepts(channel: Channel, event: str, *, urgent: bool) -> bool:
    """Tell whether a channel wants a message."""
    return event in channel.events and (urgent or not channel.urgent_only)


def decide(message: OpenMessage, settings: NotifySettings, switched_on: Sequence[str]) -> Decision:
    """Decide what becomes of a message.

    It is given to every channel that wants it, also to those that are switched off here: another
    process may have their URL. An urgent one that nobody took for `escalate_after_min`, or whose
    channels were all given up, is given to the next channel in the order of the configuration.

    Args:
        message: The message.
        settings: Channels and times.
        switched_on: Names of the channels that can be used here.

    Returns:
        What to do.
    """
    if message.age_s > settings.expire_after_h * 3600:
        return Decision(close=True)
    if not message.channels:
        wanted = tuple(
            channel.name
            for channel in settings.channels
            if accepts(channel, message.event, urgent=message.urgent)
        )
        if wanted:
            return Decision(give_to=wanted)
    over = len(message.delivered) + len(message.dead) == len(message.channels)
    if message.urgent and not message.delivered:
        left = [
            channel.name
            for channel in settings.channels
            if channel.name not in message.channels and channel.name in switched_on
        ]
        late = message.waited_s >= settings.escalate_after_min * 60
        if left and (late or over):
            return Decision(give_to=(left[0],), escalated=True)
        if not message.channels:
            return Decision()
    # Nobody wants it, or all who got it have it or were given up.
    return Decision(close=over and bool(settings.channels))


def backoff_s(tries: int, settings: NotifySettings) -> float:
    """Return the seconds until the next try after so many of them."""
    return min(settings.backoff_max_s, settings.backoff_s * 2.0 ** min(tries - 1, 30))
