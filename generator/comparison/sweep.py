"""A sweep: the trainings of many generators side by side, and the laws that their losses follow."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .power_laws import PowerLaw, fit_power_law, frontier

Status = Literal["finished", "stopped", "failed"]
AXES = {"parameters": "parameters", "training_runs": "training runs", "cpu_s": "CPU seconds of training"}
"""What losses are plotted against and fitted in, in words."""
QUANTITIES = {"held_out_loss": "held-out loss", "misalignment": "1 - prompt alignment"}
"""What falls, in words."""
FLOOR_NEEDS = 4
"""Different values of an axis from which on a law may end at a floor instead of at 0."""
FLAT = 1e-3
"""A law with a smaller exponent does not fall, and no floor is there to be known."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a sweep and what came of it."""

    name: str
    size: str | None
    tokens: str
    lr: float
    share: float
    """Of the training runs."""
    seed: int
    status: Status
    width: int
    base_width: int | None
    parameters: int
    training_runs: int
    steps: int = 0
    pairs: int = 0
    cpu_s: float = math.nan
    """Of all training workers, without what the measuring of held-out losses took."""
    held_out_loss: float = math.nan
    alignment: float = math.nan
    """Prompt alignment on held-out initialisations, test split, the mean over networks."""
    one_update: dict[str, float] = field(default_factory=dict)
    """Test metrics of networks prompted for the best, means."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Its reports in order: step, cpu_s, held_out_loss and more."""

    @property
    def misalignment(self) -> float:
        return 1 - self.alignment

    def row(self) -> dict[str, Any]:
        """What a table says of it."""
        row = asdict(self)
        return {key: value for key, value in row.items() if key not in ("curve", "one_update")} | {
            f"one_update_{key}": value for key, value in self.one_update.items()
        }


def best_rates(trials: Iterable[Trial]) -> list[Trial]:
    """Of every kind of tokens, size and share the finished trials with the learning rate that did best.

    Best by the mean over seeds of the held-out loss; trials of all seeds remain.
    """
    by_rate: dict[tuple, dict[float, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if trial.status == "finished" and math.isfinite(trial.held_out_loss):
            by_rate[trial.tokens, trial.width, trial.share][trial.lr].append(trial)
    return [each for rates in by_rate.values() for each in min(rates.values(), key=_mean_loss)]


def _mean_loss(trials: Sequence[Trial]) -> float:
    return sum(trial.held_out_loss for trial in trials) / len(trials)


def scaling_laws(trials: Sequence[Trial]) -> dict[str, PowerLaw]:
    """The laws that the best trials support, by name, "held_out_loss/parameters".

    In parameters with all the data that was used, in training runs with the largest model, jointly in both,
    and in CPU seconds along the frontier: the least loss that was had for a cost, reports on the way
    included, which are no independent points: its interval is too narrow.
    Of several kinds of tokens each has laws of its own, "chunks: held_out_loss/parameters".
    """
    best, laws = best_rates(trials), {}
    kinds = sorted({trial.tokens for trial in best})
    for kind in kinds:
        own = [trial for trial in best if trial.tokens == kind]
        prefix = f"{kind}: " if len(kinds) > 1 else ""
        for quantity in QUANTITIES:
            for name, points, loss in _point_sets(own, quantity):
                distinct = min(len(set(values)) for values in points.values())
                floor = distinct >= FLOOR_NEEDS or len(points) > 1
                law = fit_power_law(points, loss, floor=floor)
                if law is None or (len(points) == 1 and min(law.exponents) < FLAT):  # a line may also rise
                    law = fit_power_law(points, loss, floor=False)
                if law is not None:
                    laws[f"{prefix}{quantity}/{name}"] = law
    return laws


def _point_sets(
    trials: Sequence[Trial], quantity: str
) -> Iterable[tuple[str, dict[str, list[float]], list[float]]]:
    """(name, values of each term, losses) of the laws that are looked for."""
    share, width = max(trial.share for trial in trials), max(trial.width for trial in trials)
    sets: dict[tuple[str, ...], Callable[[Trial], bool]] = {
        ("parameters",): lambda trial: trial.share == share,
        ("training_runs",): lambda trial: trial.width == width,
        ("parameters", "training_runs"): lambda trial: True,
    }
    for axes, chosen in sets.items():
        own = [trial for trial in trials if chosen(trial)]
        points = {axis: [float(getattr(trial, axis)) for trial in own] for axis in axes}
        yield "/".join(axes), points, [getattr(trial, quantity) for trial in own]
    cost, loss = cpu_frontier([trial for trial in trials if trial.share == share], quantity)
    yield "cpu_s", {"cpu_s": cost}, loss


def cpu_frontier(trials: Sequence[Trial], quantity: str) -> tuple[list[float], list[float]]:
    """(CPU seconds, loss) of what nothing cheaper was as good as; of alignment only ends of trials count."""
    points = [(trial.cpu_s, getattr(trial, quantity)) for trial in trials]
    if quantity == "held_out_loss":
        points = [(each["cpu_s"], each[quantity]) for trial in trials for each in trial.curve] or points
    points = [point for point in points if all(map(math.isfinite, point))]
    kept = frontier([cost for cost, _ in points], [loss for _, loss in points])
    return [points[i][0] for i in kept], [points[i][1] for i in kept]
