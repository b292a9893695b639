"""What the harness raises on purpose; each is one clear line for the user and an exit code.

::

    LoadTestError           exit 2: the run could not be made as asked
    ├── BadScenario         the scenario or a flag has a value that makes no sense
    └── BadTarget           nobody listens there, the login is refused, it speaks something else, or it closed half-way
"""

from starlight.errors import StarlightError


class LoadTestError(StarlightError):
    """The run could not be made. The message is one line for the user."""


class BadScenario(LoadTestError):
    """A scenario file, a flag or an assertion has a value that makes no sense; the message names it."""


class BadTarget(LoadTestError):
    """The target is not there, refuses, or does not speak what it should; the message says which."""
