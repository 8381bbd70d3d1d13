"""Conversions between formats, each by a well-kept converter; see ``bridge.conversion``."""
