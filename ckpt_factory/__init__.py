"""The checkpoint factory's library: tasks, stacked training, and the Parquet zoo that it writes."""

from .nets import MLP, ConvNet
from .plan import RunPlan, RunSettings
from .spec import ParamSpec
from .symmetry import Symmetry
from .tasks import ModuleTask, Task, check_task, make, register, registry, spec, with_options
from .train import Rows, train_stack

__all__ = [
    "MLP",
    "ConvNet",
    "ModuleTask",
    "ParamSpec",
    "Rows",
    "RunPlan",
    "RunSettings",
    "Symmetry",
    "Task",
    "check_task",
    "make",
    "register",
    "registry",
    "spec",
    "train_stack",
    "with_options",
]
