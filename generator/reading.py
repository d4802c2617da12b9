"""Runs of a zoo in a generator's coordinates, without Ray: few enough to be held in memory at once."""

from ckpt_factory.zoo import Zoo

from .coordinates import Coordinates
from .hole import Hole, without_hole
from .pairs import Reservoir, Runs


def reservoir_of(
    zoo: Zoo, coordinates: Coordinates, first: int, end: int, most: int, hole: Hole | None = None
) -> Reservoir:
    """The runs with ids from `first` to `end`, about `most` of them, as many of each shard; without what lies
    in the hole."""
    ids = {unit: zoo.header.run_ids(unit) for unit in zoo.finished_units()}
    units = [unit for unit, held in ids.items() if held[0] < end and held[-1] >= first]
    per_unit = -(-most // max(1, len(units)))
    reservoir = Reservoir(per_unit * max(1, len(units)))
    for unit in units:
        rows = zoo.read_unit(unit)
        chosen = ((rows.run_ids >= first) & (rows.run_ids < end)).nonzero().squeeze(1)[:per_unit]
        theta = rows.theta[chosen].float()
        z = coordinates.encode(theta.flatten(0, 1)).unflatten(0, theta.shape[:2])
        reservoir.push(without_hole(Runs(z, rows.metrics[zoo.header.prompted][chosen]), hole))
    return reservoir
