"""``python -m starlight`` is the command ``starlight``."""

import sys

from starlight.cli import main

sys.exit(main())
