"""The ``bridge`` program: one file per command.

Nothing here computes: commands read their arguments, call ``bridge`` or
``bridge_bench``, and render what comes back. ``bridge --help`` imports neither numpy
nor ``bridge``.
"""
