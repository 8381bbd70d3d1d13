"""Test sets that others wrote, made ready once and kept."""
