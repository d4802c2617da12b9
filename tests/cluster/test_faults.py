"""SIGKILL of the driver, `theta` itself, at a moment in the middle; then the same command again."""

import dataclasses
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ckpt_factory.zoo import Zoo
from cluster.factory import CheckpointFactory
from cluster.factory_config import smoke
from cluster.train import LOG, read_log
from cluster.under_way import UnderWay
from generator.artefact import MODEL

from ..conftest import theta_environment
from .processes import command_line, descendants, kill, wait_for, zoo_bytes

pytestmark = pytest.mark.ray

MAKE = "make --preset smoke --num-runs 512 --num-steps 400 --num-cpus 2"
TRAIN = (  # as the fixture `trained`, in words of the command line
    "train --width 32 --depth 1 --steps 240 --batch-size 32 --warmup-steps 10 --report-every 10 "
    "--checkpoint-every 40 --precision float32 --held-out 0.25 --num-cpus 2"
)


def theta(arguments: str, *more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", *arguments.split(), *map(str, more)],
        env=theta_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def kill_driver(process: subprocess.Popen[str]) -> None:
    """SIGKILL, then wait until the cluster and the workers that it had started are gone by themselves."""
    working = [
        pid for name in ("raylet", "ray::Factory", "ray::RayTrain") for pid in descendants(process.pid, name)
    ]
    below = descendants(process.pid)
    assert working, "it had started Ray"
    kill(process.pid)
    process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in working), 60, "Ray outlived its driver")
    for pid in below:  # Ray's agents notice only after a minute or more that their cluster is gone
        if "Agent" in command_line(pid):
            kill(pid)


@pytest.mark.slow  # by default of an actor, in test_factory
def test_zoo_is_byte_identical_after_sigkill_of_the_driver(ray_cluster: int, tmp_path: Path) -> None:
    process = theta(MAKE, "--out", tmp_path / "killed")
    wait_for(lambda: list((tmp_path / "killed" / "sums").glob("*")), 90, "no first shard")
    time.sleep(random.uniform(0, 0.5))
    kill_driver(process)
    done = len(Zoo.open(tmp_path / "killed").finished_units())
    assert 0 < done < 32
    assert f"{done} of 32 shards are there already" in finish(theta(MAKE, "--out", tmp_path / "killed"))
    plan = dataclasses.replace(smoke().plan, num_steps=400)
    CheckpointFactory(dataclasses.replace(smoke(), out=tmp_path / "whole", num_runs=512, plan=plan)).fit()
    assert zoo_bytes(tmp_path / "killed") == zoo_bytes(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".tmp-*"))


@pytest.mark.slow
def test_training_goes_on_from_its_last_checkpoint_after_sigkill_of_the_driver(
    trained: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    log, paths = tmp_path / LOG, ("--zoo", digits_zoo.path, "--out", tmp_path)
    process = theta(TRAIN, *paths)
    reports = random.randint(6, 16)  # of 24
    wait_for(lambda: len(read_log(log)) >= reports, 120, "no progress")
    kill_driver(process)
    found = re.search(r"resuming .* from step (\d+)", finish(theta(TRAIN, *paths)))
    assert found is not None, "it began anew"
    assert int(found[1]) in range(40, 200, 40), "it went on from a checkpoint"
    assert [entry["step"] for entry in read_log(log)] == list(range(10, 241, 10))
    resumed, whole = (safetensors.torch.load_file(out / MODEL) for out in (tmp_path, trained))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_first_shard_does_not_promise_to_go_on(
    tmp_path: Path, how: signal.Signals
) -> None:
    process = theta(MAKE.replace("--num-steps 400", "--num-steps 1000000"), "--out", tmp_path)
    try:
        wait_for(lambda: UnderWay.of_zoo(tmp_path).shares(), 240, "no stack under way")
        process.send_signal(how)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()  # a stack of a million steps
    assert process.returncode == 130, output
    assert "***" not in output, "no stack of Ray's"
    assert "theta make: interrupted; nothing is saved yet; the same command begins again" in output
    assert not UnderWay.of_zoo(tmp_path).folder.exists()
    assert Zoo.open(tmp_path).finished_units() == []
