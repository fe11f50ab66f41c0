"""Ray, where it is installed: the cluster that RAY_ADDRESS names, else this machine for the time of the command."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from dfkd.system.errors import RequestError

_STORE = 100 * 2**20
"""Bytes of Ray's object store on this machine: numbers and small files go through it."""
CORES: int | None = None
"""Cores that Ray uses where it is started on this machine; None: all."""
RESTARTS = 3
"""How often a worker or a stage begins again after its process was killed, or ran out of memory."""
_TRIES = 3
"""How often Ray is started: its processes wait 15 s for each other, and a machine may be full of other work."""


def check_installed() -> None:
    """Raises: RequestError where Ray is not installed."""
    if find_spec("ray") is None:
        raise RequestError("--engine ray needs ray: pip install '.[ray]' in the checkout of dfkd")


@contextmanager
def connected() -> Iterator[Any]:
    """The module `ray`, connected while the block runs; a connection that was there before is used, and stays.

    Raises: RequestError where there is no such cluster, or Ray does not start.
    """
    check_installed()
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a command of ours tells nobody that it was run
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        import ray

        if ray.is_initialized():
            yield ray
            return
        _start(ray, address)
        if in_main:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the command where it is
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)


def _start(ray: Any, address: str | None) -> None:
    """Connect. Raises: RequestError where that cannot be."""
    here = {"num_cpus": CORES, "include_dashboard": False, "object_store_memory": _STORE}
    options: dict[str, Any] = {"address": address} if address else {"address": "local", **here}
    for tried in range(1, _TRIES + 1):
        try:
            ray.init(log_to_driver=False, logging_level="error", **options)
            return
        except Exception as error:  # of its own, of gRPC's, of the operating system
            ray.shutdown()
            if address is None and tried < _TRIES:
                continue
            what = f"RAY_ADDRESS={address} cannot be used" if address else "Ray does not start on this machine"
            raise RequestError(f"--engine ray: {what}: {str(error).splitlines()[0]}") from error


def cluster_resources(ray: Any) -> dict[str, float]:
    """How many cores and GPUs there are for Ray."""
    found = ray.cluster_resources()
    return {name: float(found.get(name, 0)) for name in ("CPU", "GPU")}


def environment() -> dict[str, Any]:
    """The option of a worker by which it has the cache of this command."""
    return {"runtime_env": {"env_vars": {name: os.environ[name] for name in ("DFKD_CACHE",) if name in os.environ}}}
