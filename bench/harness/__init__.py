"""What `bench/run` is made of: servers, rows, one measured run, statistics, the chart. See bench/README.md."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)  # measure this checkout, not a starlight that is installed somewhere
