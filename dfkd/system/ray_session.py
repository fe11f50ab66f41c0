"""Connection to Ray: the cluster that RAY_ADDRESS names, or else an instance on this machine for one command."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from dfkd.system.errors import RequestError, first_line

_STORE = 100 * 2**20
"""Size in bytes of Ray's object store on this machine. Only numbers and small files pass through the store."""
CORES: int | None = None
"""Number of cores that Ray uses on this machine, or None for all."""
RESTARTS = 3
"""Number of restarts of a worker or stage whose process was killed or ran out of memory."""
_TRIES = 3
"""Number of tries to start Ray. Its processes wait 15 s for each other, which is short on a busy machine."""


def check_installed() -> None:
    """Raise RequestError if Ray is not installed."""
    if find_spec("ray") is None:
        raise RequestError("--engine ray needs ray: pip install '.[ray]' in the checkout of dfkd")


@contextmanager
def connected() -> Iterator[Any]:
    """Yield the module `ray`, connected while the block runs. An existing connection is used and kept.

    Raises: RequestError if the cluster does not answer or Ray does not start.
    """
    check_installed()
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        import ray

        if ray.is_initialized():
            yield ray
            return
        _start(ray, address)
        if in_main:
            signal.signal(signal.SIGTERM, handler)  # Ray's own handler would end the command at once
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)


def _start(ray: Any, address: str | None) -> None:
    """Connect to Ray. Raises: RequestError if the cluster does not answer or Ray does not start."""
    here = {"num_cpus": CORES, "include_dashboard": False, "object_store_memory": _STORE}
    options: dict[str, Any] = {"address": address} if address else {"address": "local", **here}
    for tried in range(1, _TRIES + 1):
        try:
            ray.init(log_to_driver=False, logging_level="error", **options)
            return
        except Exception as error:  # Ray, gRPC and the operating system raise errors of their own
            ray.shutdown()
            if address is None and tried < _TRIES:
                continue
            what = f"RAY_ADDRESS={address} cannot be used" if address else "Ray does not start on this machine"
            raise RequestError(f"--engine ray: {what}: {first_line(error)}") from error


def cluster_resources(ray: Any) -> dict[str, float]:
    """Return the numbers of CPU cores and GPUs that the cluster has, as `CPU` and `GPU`."""
    found = ray.cluster_resources()
    return {name: float(found.get(name, 0)) for name in ("CPU", "GPU")}


def environment() -> dict[str, Any]:
    """Return the option that gives a Ray worker the cache folder of this command."""
    return {"runtime_env": {"env_vars": {name: os.environ[name] for name in ("DFKD_CACHE",) if name in os.environ}}}
