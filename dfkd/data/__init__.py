"""DATA (a path or URI) -> a `Pool`: origins and uint8 images by index, whatever the format."""

from dfkd.data.opening import open_pool
from dfkd.data.pool import Images, Pool

__all__ = ["Images", "Pool", "open_pool"]
