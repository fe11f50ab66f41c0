"""One file per format of a pool; each yields a `Reader`."""
