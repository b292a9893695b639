"""`python -m starlight.loadtest`: the same as `starlight bench`."""

from starlight.loadtest.cli import main

main()
