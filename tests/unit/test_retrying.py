"""How often something transient is tried again."""

from __future__ import annotations

from typing import NoReturn

import pytest

from keikaku_snapshots.postgres.connect import RetryPolicy, retrying


class Flaky:
    """Fails as told, then answers."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> int:
        """Fail or tell the number of the call."""
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.calls


def test_three_tries_are_made_and_the_last_error_is_raised_itself() -> None:
    """FAULTS 96: tenacity would raise RetryError."""
    flaky = Flaky(*[ConnectionRefusedError(str(number)) for number in range(5)])

    with pytest.raises(ConnectionRefusedError, match="2"):
        retrying(sleep=lambda _: None)(flaky)
    assert flaky.calls == 3


def test_waits_grow_from_two_to_ten_seconds() -> None:
    """A10: exponential wait of 2 to 10 s with jitter."""
    waits: list[float] = []
    flaky = Flaky(*[ConnectionRefusedError() for _ in range(7)])

    assert retrying(RetryPolicy(attempts=8), sleep=waits.append)(flaky) == 8
    assert all(2 <= wait <= 10 for wait in waits)
    assert waits[-1] == 10


def test_a_fault_of_the_program_is_not_tried_again() -> None:
    """FAULTS 96: tenacity retries a TypeError unless told otherwise."""
    flaky = Flaky(TypeError())

    with pytest.raises(TypeError):
        retrying(sleep=lambda _: None)(flaky)
    assert flaky.calls == 1


def test_control_c_ends_the_loop() -> None:
    """FAULTS 96: KeyboardInterrupt is not retried, whatever the caller would retry."""
    flaky = Flaky(KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        retrying(should_retry=lambda _: True, sleep=lambda _: None)(flaky)
    assert flaky.calls == 1


def test_no_wait_begins_that_would_pass_the_deadline() -> None:
    """FAULTS 96: stop_after_delay(1) ran for 2.2 s."""

    def never(seconds: float) -> NoReturn:
        pytest.fail(f"waited {seconds} s")

    with pytest.raises(ConnectionRefusedError):
        retrying(RetryPolicy(deadline_s=1.0), sleep=never)(Flaky(ConnectionRefusedError()))


def test_the_caller_is_told_before_each_wait() -> None:
    """Number of the try, its error, the seconds to wait."""
    told: list[tuple[int, str]] = []

    retrying(
        on_retry=lambda number, error, _: told.append((number, type(error).__name__)), sleep=lambda _: None
    )(Flaky(ConnectionResetError()))

    assert told == [(1, "ConnectionResetError")]
