"""The load harness behind `starlight bench`: it measures a WebSocket server and proves what arrived.

In the order in which a run goes through them:

- `cli`: the command. `target`, `scenario`: where a run goes, and what it does. `plan`: who sends what to whom.
- `dialects`: the bytes of each kind of server.
- `workers`: processes and threads, each with an engine. `_engine`, with its parts: `_arena`, what all share; `_loop`,
  what is sent when; `_net`, connections; `_receive`, what comes in; `_protocol`, what must not; `_stamp`, what each
  message carries; `_check`, whether all arrived. `checker`: the same rules as a plain model, for logs.
- `runner`: the phases. `procstat`: CPU and memory of the server and of ourselves. `live`: the table meanwhile.
- `result`: what a run gave. `summary`, `html`: how it is shown. `compare`: two of them.
- `assertions`: service levels. `findmax`: the highest rate that holds them. `errors`: what is raised on purpose.
"""

from starlight.loadtest.errors import BadTarget, LoadTestError
from starlight.loadtest.result import Result
from starlight.loadtest.runner import run_scenario
from starlight.loadtest.scenario import BUILT_IN, Scenario
from starlight.loadtest.target import Target

__all__ = ["BUILT_IN", "BadTarget", "LoadTestError", "Result", "Scenario", "Target", "run_scenario"]
