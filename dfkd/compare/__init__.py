"""Runs side by side: a table, a CSV and a page."""
