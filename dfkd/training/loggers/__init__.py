"""Where metrics go beside `metrics.jsonl`: one file for each program that shows them."""
