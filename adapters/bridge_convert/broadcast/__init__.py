"""Request-level broadcast: inputs that are equal for all rows are sent once."""

from bridge_convert.broadcast.adapter import BroadcastOptions, OnnxBroadcast

__all__ = ["BroadcastOptions", "OnnxBroadcast"]
