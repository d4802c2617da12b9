"""Learning problems: the Task protocol, its registry, and the tasks that come with the package."""

from .base import Batch, Task
from .check import check_task
from .convolution import ConvClassifier
from .data import ImageData
from .fit import error_rate
from .modules import ModuleTask
from .registry import TaskSpec, make, register, registry, spec, with_options
from .synthetic import Quadratic
from .vision import MLPClassifier

__all__ = [
    "Batch",
    "ConvClassifier",
    "ImageData",
    "MLPClassifier",
    "ModuleTask",
    "Quadratic",
    "Task",
    "TaskSpec",
    "check_task",
    "error_rate",
    "make",
    "register",
    "registry",
    "spec",
    "with_options",
]
