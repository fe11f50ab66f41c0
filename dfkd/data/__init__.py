"""Reading of DATA (a path or URI) as a `Pool`: origins and uint8 images by index, for every format."""

from dfkd.data.opening import open_pool
from dfkd.data.pool import Images, Pool

__all__ = ["Images", "Pool", "open_pool"]
