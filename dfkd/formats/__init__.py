"""The contracts on disk: selections, their shards and manifests, and the folders of runs."""
