"""Runs and selections as tables, CSV files and HTML pages."""
