"""Fixtures for all tests: one thread, small tasks and zoos, and one Ray cluster for the whole session."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckpt_factory import MLP, RunPlan, Task, make, train_stack
from ckpt_factory.zoo import Zoo, ZooHeader
from cluster.runtime import RayConfig, prepare_environment, ray_session

RAYS_OWN = {
    "RAY_worker_niceness": "0",  # beside other tests, workers that give way to all others starve
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # each new one imports torch again
}

os.environ.pop("RAY_ADDRESS", None)
for name, value in RAYS_OWN.items():
    os.environ.setdefault(name, value)
prepare_environment(None)  # before anything imports Ray
torch.set_num_threads(1)

DATA_FOLDERS = [
    Path(os.environ.get("THETAFORGE_TEST_DATA", "/nonexistent")),
    Path(__file__).parents[2] / "shared" / "data",
]


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One of pytest-xdist's processes runs all tests that need the session's Ray, and one those of the whole
    story, which share what it has made, and others that start a Ray of their own."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        needs_ray = "cluster" in item.path.parts and item.get_closest_marker("ray")
        if needs_ray or "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.path.name == "test_story.py":
            item.add_marker(pytest.mark.xdist_group("story"))


def theta_environment() -> dict[str, str]:
    """The environment for a `theta` of its own, with a Ray of its own: this session's token stays here."""
    return {
        name: value for name, value in os.environ.items() if name in RAYS_OWN or not name.startswith("RAY_")
    }


@pytest.fixture(scope="session")
def digits() -> Task:
    return make("digits-mlp-v0")


def folder_with(name: str) -> Path:
    """A folder with a real data set as Parquet, where this machine has one."""
    for folder in DATA_FOLDERS:
        if (folder / name / "train.parquet").is_file():
            return folder
    pytest.skip(
        f"no {name} here: set THETAFORGE_TEST_DATA to a folder with {name}/train.parquet and test.parquet"
    )


@pytest.fixture(scope="session")
def data_root() -> Path:
    """A folder with real MNIST as Parquet."""
    return folder_with("mnist")


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """A folder with real CIFAR-10 as Parquet."""
    return folder_with("cifar10")


def write_zoo(
    path: Path, task: Task, plan: RunPlan, *, num_runs: int, stack_size: int, dtype: str = "float32"
) -> Zoo:
    """A zoo made in this process, without Ray: what the factory's actors do, one unit after the other."""
    header = ZooHeader.of_task(task, plan, num_runs=num_runs, stack_size=stack_size, dtype=dtype)
    zoo = Zoo.create(path, header)
    for unit in range(header.num_units):
        rows = train_stack(task, plan, plan.runs(header.run_ids(unit)), dtype=getattr(torch, dtype))
        zoo.write_unit(unit, rows)
    return zoo


@pytest.fixture(scope="session")
def small_plan() -> RunPlan:
    return RunPlan(num_steps=60, batch_size=(32,), num_checkpoints=8)


@pytest.fixture(scope="session")
def digits_zoo(digits: Task, small_plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """24 short runs on digits in three shards. Read it; whoever damages a zoo copies it first."""
    return write_zoo(
        tmp_path_factory.mktemp("zoos") / "digits", digits, small_plan, num_runs=24, stack_size=8
    )


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[int]:
    """The one local Ray of the session, loopback only and with a token, as `theta` starts it."""
    with ray_session(RayConfig(num_cpus=3)) as cpus:
        yield cpus


def plain_mlp(sizes: tuple[int, ...], state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The oracle: an ordinary module with these parameters."""
    net = MLP(sizes)
    net.load_state_dict(state)
    return net


def unchecked(network: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The same without this session's run-time type checks, which refuse what torch.fx traces with."""
    return type(network.__name__, (network,), {"forward": inspect.unwrap(network.forward)})
