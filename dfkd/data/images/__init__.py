"""Everything that happens to a pixel between a file and a network: decoding, filtering, normalizing, augmenting."""
