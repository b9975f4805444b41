"""Text for calibration and evaluation, as documents and as token ids."""

from quept.data.hub import Split
from quept.data.text import load_text
from quept.data.tokens import digest, token_stream, token_windows

__all__ = ["Split", "digest", "load_text", "token_stream", "token_windows"]
