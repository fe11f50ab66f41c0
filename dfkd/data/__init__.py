"""DATA (a path or URI) -> a `Pool`: origins and uint8 images by index, whatever the format."""

from dfkd.data.pool import Images, Pool, open_pool

__all__ = ["Images", "Pool", "open_pool"]
