from collections.abc import Iterable

ORDERLY_S: float
"""How long the process has to end by itself after a second signal, for the log's last lines."""

def arm(numbers: Iterable[int], leave_after_s: float, fd: int, second: bytes, late: bytes, status: int) -> None:
    """From now on the process ends in time, whatever its Python does.

    Args:
        numbers: signals; the first of them sets the deadline, the second one ends the process with 128 + its number.
        leave_after_s: the deadline's distance from the first signal.
        fd: where the last line is written if it can be taken at once; -1 for nowhere.
        second: the last line after a second signal, as a format for `time.strftime` in UTC.
        late: the last line at the deadline.
        status: the exit status at the deadline.

    Raises OSError, and RuntimeError if no thread can be started.
    """

def take(numbers: Iterable[int]) -> None:
    """See these signals again, after somebody has given them another handler, which is called by ours from now on."""

def change_late(late: bytes, status: int) -> None:
    """Another last line and exit status for the deadline."""

def change_leave_after(leave_after_s: float) -> None:
    """Another distance of the deadline from the first signal, unless that has come."""

def leave_within(seconds: float) -> None:
    """Set the deadline, unless there is one."""

def is_signalled() -> bool:
    """Whether one of the signals has come since `arm`."""

def disarm() -> None:
    """No deadline any more; a later signal sets it again."""
