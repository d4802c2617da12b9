"""Runs of a zoo in a generator's coordinates, without Ray: few enough to be held in memory at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.train import Rows
from ckpt_factory.zoo import Zoo

from ..coordinates import Coordinates
from .hole import Hole, without_hole
from .pairs import Reservoir, Runs


def encoded(
    coordinates: Coordinates,
    theta: Shaped[Tensor, "R S D"],
    metric: Float[Tensor, "R S M"],
    hole: Hole | None = None,
) -> Runs:
    """Runs as a zoo has them, with metrics that are prompted, in coordinates; without what is in the hole."""
    z = coordinates.encode(theta.float().flatten(0, 1)).unflatten(0, theta.shape[:2])
    return without_hole(Runs(z, metric), hole)


def metrics_of(rows: Rows, columns: Sequence[str]) -> Float[Tensor, "R S M"]:
    """Some columns of metrics side by side."""
    return torch.stack([rows.metrics[column] for column in columns], -1)


def reservoir_of(
    zoo: Zoo,
    coordinates: Coordinates,
    first: int,
    end: int,
    most: int,
    hole: Hole | None = None,
    columns: Sequence[str] | None = None,
) -> Reservoir:
    """The runs with ids from `first` to `end`, about `most` of them, as many of each shard; without what lies
    in the hole. With the metrics of `columns`; default the zoo's prompted one."""
    ids = {unit: zoo.header.run_ids(unit) for unit in zoo.finished_units()}
    units = [unit for unit, held in ids.items() if held[0] < end and held[-1] >= first]
    units = units[:: max(1, len(units) // most)]
    per_unit = -(-most // max(1, len(units)))
    reservoir = Reservoir(per_unit * max(1, len(units)))
    for unit in units:
        rows = zoo.read_unit(unit, zoo.row_groups_of(unit, max(0, first - ids[unit][0]), per_unit))
        chosen = ((rows.run_ids >= first) & (rows.run_ids < end)).nonzero().squeeze(1)[:per_unit]
        metric = metrics_of(rows, columns or (zoo.header.prompted,))[chosen]
        reservoir.push(encoded(coordinates, rows.theta[chosen], metric, hole))
    return reservoir


def some_networks(
    zoo: Zoo, task: Task, end: int, num: int, hole: Hole | None = None, *, rng: torch.Generator
) -> Float[Tensor, "N D"]:
    """Finite checkpoints of `num` runs with ids before `end`, one of each in the mean, as they are."""
    plain = Coordinates(task.spec, task.symmetry, {})
    parts = reservoir_of(zoo, plain, 0, end, num, hole).checkpoints(num, rng=rng)
    return plain.decode_update(torch.cat(list(parts)))
