"""The load harness behind `starlight bench`: it measures a WebSocket server and proves what arrived.

Reading order: `scenario.py` (what is to be done) -> `plan.py` (who is connected, who sends what to whom) ->
`dialects.py` (the bytes) -> `_engine.pyx` and its `.pxd` files (the doing) -> `runner.py` (phases and figures) ->
`result.py`.
"""

from starlight.loadtest.errors import BadTarget, LoadTestError
from starlight.loadtest.result import Result
from starlight.loadtest.runner import run_scenario
from starlight.loadtest.scenario import BUILT_IN, Scenario
from starlight.loadtest.target import Target

__all__ = ["BUILT_IN", "BadTarget", "LoadTestError", "Result", "Scenario", "Target", "run_scenario"]
