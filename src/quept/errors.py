"""Everything quept raises on purpose.

Each message is one paragraph that says what was given, what is allowed and what to do about it; the command
line prints it as it is and exits with `exit_code`.
"""


class QueptError(Exception):
    """Base of every error that quept raises on purpose."""

    exit_code = 1


class InvalidInput(QueptError, ValueError):
    """The caller asked for something that cannot be: a wrong value, a missing path, too little data."""

    exit_code = 2


class CorruptArtifact(QueptError):
    """A file on disk is not what it claims to be: truncated, altered, or of an unknown format version."""


class CalibrationFailed(QueptError):
    """Calibration could not go on: non-finite weights or losses."""
