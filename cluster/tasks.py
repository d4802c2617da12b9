"""Tasks on the cluster: registered where they are asked for, on the data that a zoo or a generator is of."""

import importlib
from pathlib import Path
from typing import Any

from ckpt_factory import Task, make, registry
from ckpt_factory.header import check_inputs
from ckpt_factory.zoo import Zoo
from generator.origin import Origin


def know_policies(task: str) -> None:
    """Register the policies' tasks where no task has that id: what is then said of it can suggest them."""
    name = task.partition("?")[0]
    if ":" not in name and name not in registry:
        importlib.import_module("rl_tasks")


def task_of_zoo(zoo: Zoo, data_root: Path | None, *, id: str | None = None, data: Any = None) -> Task:
    """The task of a zoo, on the data that its networks were trained on.

    Args:
        id: of the same task with other options; default as in the zoo.
        data: the data itself, where it is already loaded.

    Raises:
        ValueError: the images are not there, or are others.
    """
    task = make(id or zoo.header.task, data_root=data_root, data=data)
    zoo.header.check_inputs(task)
    return task


def task_of_generator(origin: Origin, data_root: Path | None, *, data: Any = None) -> Task:
    """The task of a generator, on the data that it has learned from; as `task_of_zoo`."""
    task = make(origin.task, data_root=data_root, data=data)
    check_inputs(task, origin.inputs, "the generator was trained on")
    return task
