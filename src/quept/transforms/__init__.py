"""Preparations of a block that leave its full-precision function unchanged."""

from quept.transforms.smoothing import ChannelScales, fit

__all__ = ["ChannelScales", "fit"]
