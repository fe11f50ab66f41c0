"""A cluster of three nodes on this machine, of which one is killed while it scores: a program, as `ray_together.py`.

python ray_nodes.py FOLDER. The command connects to a node without cores; each of the two others has one.
"""

import os
import sys
import threading
import time
from pathlib import Path

import ray_together
from ray_together import prepare, select, tree

PACED = """
import time

class Paced(Net):
    def forward(self, x):
        here = Path(__file__).parent
        if str(os.getpid()) != os.environ["COMMAND"] and len(x) == 256:
            (here / f"scoring-{os.getppid()}").touch()
            while not (here / "killed").exists():
                time.sleep(0.05)
        return super().forward(x)
"""
"""Waits in every worker until a node is killed. A worker's parent is its node."""
STORE = 100 * 2**20
"""Bytes of a node's object store."""
WAIT = 300.0
"""Seconds until both nodes have to be scoring."""


def main(folder: Path) -> None:
    from ray.cluster_utils import Cluster

    from dfkd.select import ray_scorer

    ray_together.NETS += PACED
    prepare(folder)
    select(folder, "Paced", "cache-one", "one")
    # Ray's default niceness of 15 would starve its workers beside other tests. The variable has Ray's spelling.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray_scorer._PATIENCE = 5
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    scoring: list[Path] = []

    def kill_one() -> None:
        until = time.monotonic() + WAIT
        while len(scoring) < len(nodes) and time.monotonic() < until:
            time.sleep(0.1)
            scoring[:] = folder.glob("scoring-*")
        cluster.remove_node(nodes[1], allow_graceful=False)
        (folder / "killed").touch()

    killer = threading.Thread(target=kill_one)
    killer.start()
    select(folder, "Paced", "cache-many", "many", "--engine", "ray", "--workers", "2")
    killer.join()
    cluster.shutdown()
    assert len(scoring) == len(nodes), scoring
    assert tree(folder / "many") == tree(folder / "one")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
