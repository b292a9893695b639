"""Nobody is refused while a node restarts: the short form of `python -m tests.restarts`, 10 under 1,000 a second."""

from __future__ import annotations

from tests.restarts import restarts
from tests.support import needs_speed

RESTARTS = 2
RATE = 200


async def test_no_connect_is_refused_while_the_manager_holds_the_socket():
    result = await restarts("socket", RESTARTS, RATE)
    assert not result.failures, result
    assert result.answered == result.connects > RATE
    assert result.told > 0


async def test_no_connect_is_refused_when_the_next_process_takes_the_socket_over():
    result = await restarts("handover", RESTARTS, RATE)
    assert not result.failures, result
    assert result.answered == result.connects > RATE
    assert result.told > 0


@needs_speed
async def test_hardly_a_connect_is_reset_between_two_processes_of_one_port():
    """SO_REUSEPORT: a connection that the kernel puts into the closing socket after the last accept is reset."""
    result = await restarts("reuse-port", RESTARTS, RATE)
    assert set(result.failures) <= {"reset", "refused"}, result
    assert result.failures.total() <= RESTARTS, result
    assert result.told > 0
