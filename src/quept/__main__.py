"""`python -m quept`."""

from quept.cli import main

main()
