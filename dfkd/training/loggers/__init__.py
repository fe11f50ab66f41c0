"""Loggers besides `metrics.jsonl`: one file for each program that shows metrics."""
