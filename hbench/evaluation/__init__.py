"""Measurements, one file an artifact."""
