"""Verifying a zoo on the cluster, one remote call a shard."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from ckpt_factory import Task
from ckpt_factory.files import check_writable
from ckpt_factory.verify import Verification, merge, verify_unit
from ckpt_factory.zoo import Zoo

from .command import Command, Outcome
from .progress import ProgressBar, say
from .tasks import task_of_zoo


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Which zoo to check, and how thoroughly."""

    zoo: Path = Path("runs/zoo")
    """The zoo."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""
    sample: int = 256
    """Checkpoints, spread over all shards, whose metrics are measured again; 0 measures none."""
    out: Path = Path("runs/verification")
    """Folder for result.json."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"sample is {self.sample}; expected 0 or more")


@ray.remote(num_cpus=1)
def verify_remotely(path: Path, data: Any, data_root: Path | None, unit: int, sample: int) -> Verification:
    torch.set_num_threads(1)
    zoo = Zoo.open(path)
    task = task_of_zoo(zoo, data_root, data=data) if zoo.header.remeasurable else None
    return verify_unit(zoo, task, unit, sample=sample)


def verify(config: VerifyConfig) -> tuple[Verification, dict[str, Any]]:
    """Check every finished shard of a zoo on the connected cluster: (findings, the same as numbers)."""
    zoo = Zoo.open(config.zoo)
    units = zoo.finished_units()
    task = _task(zoo, config)
    data = ray.put(task.data if task is not None else None)
    share = [
        (i + 1) * config.sample // len(units) - i * config.sample // len(units) for i in range(len(units))
    ]
    waiting = [
        verify_remotely.remote(zoo.path.absolute(), data, config.data_root, unit, sample)
        for unit, sample in zip(units, share, strict=True)
    ]
    parts: list[Verification] = []
    with ProgressBar("verify", len(units), "shards") as bar:
        while waiting:
            (done,), waiting = ray.wait(waiting)
            parts.append(ray.get(done))
            bar.update(len(parts))
    found = merge(zoo, parts)
    result = {
        name.replace("units", "shards"): value
        for name, value in asdict(found).items()
        if name not in ("last_networks", "differences")
    }
    result |= {"shards": len(found.units), "ok": found.ok}
    return found, result


def _run(config: VerifyConfig) -> Outcome:
    found, result = verify(config)
    maker = Zoo.open(config.zoo).header.maker
    for problem in found.problems:
        say(problem, label="problem", style="red")
    if found.missing_units:
        say(
            f"unfinished: {len(found.missing_units)} shards are missing; `{maker}` with the same "
            "settings resumes"
        )
    if found.damaged_units:
        say(f"`{maker} --repair` with the zoo's own settings makes damaged shards anew")
    return result, config.out, 2 if found.problems else 1 if found.missing_units else 0


def _check(config: VerifyConfig) -> None:
    zoo = Zoo.open(config.zoo)
    check_writable(config.out)
    _task(zoo, config)


def _task(zoo: Zoo, config: VerifyConfig) -> Task | None:
    """The zoo's task on the data that it was made on, where metrics can be measured again."""
    if not zoo.header.remeasurable:
        return None
    return task_of_zoo(zoo, config.data_root)


COMMAND = Command(
    VerifyConfig, _run, check=_check, examples="theta verify --zoo runs/zoo --out runs/verification"
)
