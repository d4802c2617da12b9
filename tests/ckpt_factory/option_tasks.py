"""Tasks with options, registered when this module is imported; what they were given is on the task."""

import functools
from typing import Any, Literal

import torch

from ckpt_factory import ParamSpec, Symmetry, register
from ckpt_factory.tasks import Quadratic


class Bowl(Quadratic):
    """A parabola of as many dimensions as wanted."""

    def __init__(
        self,
        *,
        dim: int = 8,
        steepness: float = 1.0,
        mirrored: bool = False,
        kind: Literal["round", "oval"] = "oval",
        level: Literal[1, 2] = 1,
        env: str = "earth",
        limit: int | None = None,
        colour: bytes = b"no option: it cannot be written down",
    ):
        super().__init__()
        self.given: dict[str, Any] = {
            "dim": dim,
            "steepness": steepness,
            "mirrored": mirrored,
            "kind": kind,
            "level": level,
            "env": env,
            "limit": limit,
        }
        self.spec = ParamSpec(("w",), ((dim,),))
        self.symmetry = Symmetry(self.spec, {"w": (None,)})
        self.curvature = torch.linspace(0.1, 1.0, dim) if kind == "oval" else torch.full((dim,), steepness)


def of_data(data: int, *, times: int) -> Quadratic:
    task = Quadratic()
    task.curvature = task.curvature * data * times
    return task


register("bowl-v0", Bowl)
register("round-bowl-v0", functools.partial(Bowl, kind="round"))
register("loaded-v0", of_data, load=lambda data_root: 3)
