"""Readers of the formats of a pool: one file per format."""
