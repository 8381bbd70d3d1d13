"""Sonos' tract as a backend of inference-bridge."""
