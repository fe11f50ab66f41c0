"""Taps, where a network's features are taken, and measures of the features."""
