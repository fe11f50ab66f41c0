"""Formats on disk: selections with their shards and manifests, and the folders of runs."""
