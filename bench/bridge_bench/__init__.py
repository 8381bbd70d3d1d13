"""Measuring predictors: inputs, clocks, agreement, and comparisons of backends.

No backend is named here, and nothing prints except the scripts (``overhead``,
``startup``).
"""
