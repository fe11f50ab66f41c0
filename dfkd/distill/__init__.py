"""Shards -> source -> loop -> run: one training loop for every source and loss."""
