"""How training workers find each other: on one machine through a file, since a port would be open to all."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train.torch import TorchConfig


def torch_config(backend: str) -> TorchConfig:
    """TorchConfig for the connected cluster: through a file where it listens on loopback alone."""
    on_loopback = ray.get_runtime_context().gcs_address.startswith(("127.0.0.1:", "[::1]:"))
    return LoopbackTorchConfig(backend=backend) if on_loopback else TorchConfig(backend=backend)


@dataclass
class LoopbackTorchConfig(TorchConfig):
    """TorchConfig without torch's TCPStore, which listens on all addresses and asks nobody who they are."""

    @property
    def backend_cls(self) -> type[Any]:
        return FileRendezvous


class FileRendezvous(TorchConfig().backend_cls):
    """Workers of one machine join their process group through a file that only its user can read."""

    folder: str = ""
    """Of the file, while there are workers."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        self.folder = tempfile.mkdtemp(prefix="thetaforge-")
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    join,
                    f"{self.folder}/store",
                    rank,
                    size,
                    backend_config.backend,
                    backend_config.timeout_s,
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:  # workers may be dead
            shutil.rmtree(self.folder, ignore_errors=True)


def join(path: str, rank: int, size: int, backend: str, timeout_s: int) -> None:
    """Join the process group, with the environment that Ray and torch expect of a worker."""
    context = ray.train.get_context()
    os.environ |= {
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    dist.init_process_group(
        backend,
        init_method=f"file://{path}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
