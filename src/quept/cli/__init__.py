"""The command line: thin commands over the public functions."""

from quept.cli.app import main

__all__ = ["main"]
