"""Once is chance, thrice is not."""

from __future__ import annotations

from zkd.workers.breaker import Breaker


def test_the_first_failure_is_free_and_the_others_wait_longer_and_longer() -> None:
    breaker = Breaker()
    waits = [breaker.fail(float(number)) for number in range(12)]
    assert waits[:4] == [0.0, 0.1, 0.2, 0.4]
    assert waits[-1] == 10.0
    assert breaker.is_open


def test_success_and_time_forgive() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0, 2.0):
        breaker.fail(now)
    breaker.reset()
    assert not breaker.is_open
    assert breaker.fail(3.0) == 0.0
    assert breaker.fail(100.0) == 0.0
    assert not breaker.is_open
