"""The Ray that `theta` starts, loopback only and with a token; and clusters that it connects to."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_factory import RunPlan
from cluster.factory import CheckpointFactory
from cluster.factory_config import FactoryConfig
from cluster.runtime import LOOPBACK_ONLY, RayConfig, ray_session

from ..conftest import theta_environment
from .processes import zoo_bytes

pytestmark = pytest.mark.ray


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_local_ray_listens_on_loopback_alone_even_while_it_trains_and_refuses_who_has_no_token(
    intruder: subprocess.Popen[str], listened_on: set[str]
) -> None:
    assert listened_on, "Ray listens somewhere"
    assert listened_on <= LOOPBACK
    _, error = intruder.communicate(timeout=120)
    assert intruder.returncode != 0
    assert "InvalidAuthToken" in error or "authentication" in error.lower()


def test_process_groups_are_bound_to_loopback_whatever_the_environment_says() -> None:
    code = "import os; from cluster.runtime import prepare_environment; prepare_environment(None); "
    code += "print(os.environ['GLOO_SOCKET_IFNAME'], os.environ['NCCL_SOCKET_IFNAME'])"
    given = theta_environment() | {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["lo", "=lo"], ["lo0", "=lo0"])


def test_address_without_a_cluster_is_one_clear_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no Ray cluster at '127\.0\.0\.1:1' .*leave out --address"):
        ray_session(RayConfig(address="127.0.0.1:1")).__enter__()
    with pytest.raises(ValueError, match='expected "host:port"'):
        ray_session(RayConfig(address="nonsense")).__enter__()


def test_address_of_something_else_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match="something answers there that is not Ray"):
            ray_session(RayConfig(address=address)).__enter__()


SEVERAL_NODES = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
doomed = cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=1)
make = [sys.executable, "-m", "cluster", "make", "--address", cluster.address, *sys.argv[1:]]
process = subprocess.Popen(make, stderr=subprocess.PIPE, text=True)
for line in process.stderr:  # `zoo: 32/256 runs ...`: the first shard is there
    if line.startswith("zoo:") and not line.startswith("zoo: 0/"):
        break
cluster.remove_node(doomed, allow_graceful=False)
rest = process.stderr.read()
status = process.wait()
cluster.shutdown()
sys.stderr.write(rest)
sys.exit(status)
"""


@pytest.mark.slow
def test_cluster_of_several_nodes_makes_the_same_zoo_even_if_one_is_lost(
    ray_cluster: int, tmp_path: Path
) -> None:
    plan = RunPlan(num_steps=300, num_checkpoints=10)
    config = FactoryConfig(out=tmp_path / "here", num_runs=256, stack_size=16, plan=plan)
    CheckpointFactory(config).fit()
    flags = [
        "--num-runs",
        "256",
        "--stack-size",
        "16",
        "--num-steps",
        "300",
        "--num-checkpoints",
        "10",
        "--out",
    ]
    environment = theta_environment() | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_NODES, *flags, tmp_path / "there"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert zoo_bytes(tmp_path / "there") == zoo_bytes(tmp_path / "here")
