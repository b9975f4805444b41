"""The errors that quept raises on purpose.

A message is one paragraph: what was given, what is allowed, what to do. The command line prints it as it is and exits
with `exit_code`.
"""


class QueptError(Exception):
    """Base of every error that quept raises on purpose."""

    exit_code = 1


class InvalidInput(QueptError, ValueError):
    """An argument cannot be used: a value out of range, a missing path, too little data."""

    exit_code = 2


class CorruptArtifact(QueptError):
    """A file of an artifact is truncated, altered, or of an unknown format version."""


class CalibrationFailed(QueptError):
    """Calibration cannot continue: weights or losses are not finite."""
