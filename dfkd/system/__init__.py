"""Foundations of every other package: errors, files, locks, signals, processes, the device and the terminal."""
