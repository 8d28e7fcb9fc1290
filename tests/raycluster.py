"""A Ray cluster of two nodes on this machine, whose workers and second node tests may kill.

``with ray_cluster() as cluster:`` starts it and connects this process; all of it is gone at the end, after an error too.
Functions that are handed to Ray from a test should be defined inside of it: then they travel by value.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what will change

import ray
import ray.data
from ray.cluster_utils import Cluster

STORE_BYTES = 200 * 2**20
# 127.0.0.1 would be replaced by the address of this machine, and a driver joins any node that has its own address.
FIRST, SECOND = "127.0.0.2", "127.0.0.3"
AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")  # parts of a node, which dies with them


class RayCluster:
    """Two Ray nodes. The driver and the cluster's own services are on the first, which is never killed."""

    def __init__(self, cpus: int = 1) -> None:
        self._cpus = cpus
        self._folder = tempfile.mkdtemp(prefix="ray-")  # short: there are sockets in it, whose paths may have 107 bytes
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={**self._node(FIRST), "include_dashboard": False},
        )
        try:
            self._second = self._cluster.add_node(**self._node(SECOND))
            ray.init(address=self.address, _node_ip_address=FIRST, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException:
            self.stop()
            raise

    def _node(self, address: str) -> dict[str, Any]:
        return {
            "num_cpus": self._cpus,
            "object_store_memory": STORE_BYTES,
            "node_ip_address": address,
            "temp_dir": self._folder,
        }

    @property
    def address(self) -> str:
        """Where it is, for `ray.init` or RAY_ADDRESS."""
        return str(self._cluster.address)

    def workers(self) -> list[int]:
        """Return the processes that do, or did, tasks: children of the two nodes called ``ray::...``."""
        cluster: Any = self._cluster
        nodes = {int(each.process.pid) for node in cluster.list_all_nodes() for each in _raylets(node)}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError, ValueError):  # gone meanwhile
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (folder / "cmdline").read_bytes()
                if parent in nodes and command.startswith(b"ray::") and not command.startswith(AGENTS):
                    found.append(int(folder.name))
        return sorted(found)

    def kill_worker(self, pick: random.Random) -> bool:
        """Kill a worker, one that does a task if there is any; return whether there was one."""
        workers = self.workers()
        busy = [pid for pid in workers if not _command(pid).startswith(b"ray::IDLE")]
        if not workers:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pick.choice(busy or workers), signal.SIGKILL)
        return True

    def replace_node(self) -> None:
        """Kill the second node with all that is on it, and add a new one."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        # Else it sets signal handlers, which the main thread alone may, and dies with this thread. Now it dies with the first.
        self._cluster._shutdown_at_exit = False
        self._second = self._cluster.add_node(**self._node(SECOND))

    def stop(self) -> None:
        """End all of it."""
        try:
            ray.shutdown()
            self._cluster.shutdown()  # type: ignore[no-untyped-call]
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _raylets(node: Any) -> list[Any]:
    return list(node.all_processes.get("raylet", ()))


def _command(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:  # gone meanwhile
        return b""


@contextlib.contextmanager
def ray_cluster(cpus: int = 1) -> Iterator[RayCluster]:
    """Start a cluster of two nodes, connect to it, and end it."""
    cluster = RayCluster(cpus)
    try:
        yield cluster
    finally:
        cluster.stop()


@contextlib.contextmanager
def killing(cluster: RayCluster, kills: int, seconds: float, seed: int, node_every: int = 5) -> Iterator[list[str]]:
    """Kill so many workers, and every `node_every`-th time the second node, at random moments about `seconds` apart.

    The list that this returns grows with each. At the end it goes on to kill no more.
    """
    pick, done, killed = random.Random(seed), threading.Event(), list[str]()

    def run() -> None:
        while len(killed) < kills and not done.wait(pick.uniform(0, 2 * seconds)):
            if len(killed) % node_every == node_every - 1:
                cluster.replace_node()
                killed.append("node")
            elif cluster.kill_worker(pick):
                killed.append("worker")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()
