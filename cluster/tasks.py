"""What the command line knows of tasks beyond those of ckpt_factory."""

import importlib

from ckpt_factory import registry


def know_policies(task: str) -> None:
    """Register the policies' tasks where no task has that id: what is then said of it can suggest them."""
    name = task.partition("?")[0]
    if ":" not in name and name not in registry:
        importlib.import_module("rl_tasks")
