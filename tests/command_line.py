"""The command line as users call it, in the process of the test."""

import sys
from unittest import mock


def run(*arguments: object) -> int:
    """Run `quept` with arguments, and return the exit code."""
    from quept.cli import main

    with mock.patch.object(sys, "argv", ["quept", *map(str, arguments)]):
        try:
            main()
        except SystemExit as leaving:
            return int(leaving.code or 0)
    return 0
