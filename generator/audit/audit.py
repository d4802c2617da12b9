"""The audit: does a generator make networks, or does it copy, recombine or blur those it was trained on?

The finding that haunts this field is that generators of weights memorise, and that noise on a training
network or a mean of some does as well (Zeng et al. 2025). So networks are held against the nearest of all
training runs, with held-out runs as the yardstick, and against those baselines at equal novelty. All numbers
are of the test split and of runs that were never trained on, and reproducible from a seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.train import Rows
from ckpt_factory.zoo import Zoo

from ..artefact import WeightGenerator
from ..medians import median
from ..rebasin import AlignedDistance
from ..training.hole import Hole
from .balance import Freedom, freedom_of
from .baselines import BASELINES
from .frontier import Judged, Subjects
from .novelty import (
    Neighbours,
    Pool,
    Search,
    Spanning,
    evenly,
    merge,
    overlaps,
    survey,
    training_runs,
    wrong_predictions,
)
from .prompts import hearing
from .span import spanning_runs, spans
from .verdict import conclude, nothing_to_audit

PARTS_OF_A_ZOO = 4
"""Remote calls, or steps, that a search of the training runs is divided into."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How thorough an audit is."""

    baseline_networks: int = 16
    """Networks of each setting of each baseline."""
    pool_runs: int = 256
    """Training runs that baselines are made of, and whose mistakes are compared."""
    search_runs: int = 4096
    """Training runs, evenly spread, that networks are searched for in; 0: all. The cost is linear in them."""
    seed: int = 0
    """Of the baselines and of the intervals."""

    def __post_init__(self) -> None:
        for name, least in (("baseline_networks", 2), ("pool_runs", 2), ("search_runs", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")

    def searched(self, runs: Sequence[int]) -> list[int]:
        """Of training runs, those that networks are searched for in."""
        return evenly(runs, self.search_runs or len(runs))


@dataclass(frozen=True)
class Subject:
    """Networks under audit."""

    theta: Float[Tensor, "Q D"]
    metric: Float[Tensor, " Q"]
    """Their prompted metric on the validation split."""
    num_training_runs: int
    """Runs of the zoo with a smaller id are what they may be copies of."""
    num_best: int
    """The first so many were asked for the best there is: they stand for the quality. The others, made for
    other prompts, only count where copies are looked for."""
    prompt: float | None = None
    """What those were asked for."""
    start: Float[Tensor, "Q D"] | None = None
    """The networks that they are updates of."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What else is known of them."""
    hole: Hole | None = None
    """Training checkpoints with a metric in it were not learned from."""
    num_given: int | None = None
    """Networks that these were drawn from, if there are more."""

    def sound(self) -> "Subject":
        """Without networks or metrics that are not finite."""
        return self._only(self.theta.isfinite().all(1) & self.metric.isfinite())

    def distinct(self, task: Task, freedom: Freedom) -> "Subject":
        """Without networks that stand for the quality a second time."""
        kept = torch.ones(len(self.theta), dtype=torch.bool)
        kept[: self.num_best] = ~repeated(task, freedom, self.theta[: self.num_best])
        return self._only(kept)

    def _only(self, kept: Bool[Tensor, " Q"]) -> "Subject":
        return replace(
            self,
            theta=self.theta[kept],
            metric=self.metric[kept],
            num_best=int(kept[: self.num_best].sum()),
            start=self.start[kept] if self.start is not None else None,
        )


def repeated(task: Task, freedom: Freedom, theta: Float[Tensor, "Q D"]) -> Bool[Tensor, " Q"]:
    """Which networks are one of those before them once more, whatever the order and scale of hidden units."""
    again = torch.zeros(len(theta), dtype=torch.bool)
    if len(theta) < 2:
        return again
    theta = freedom.canonical(task.symmetry, theta)
    distance = AlignedDistance(task.spec, task.symmetry)
    for k in range(1, len(theta)):
        near = SAME * theta[k : k + 1].double().norm(dim=1)
        again[k] = distance.nearest(theta[k : k + 1], theta[:k][~again[:k]], near)[0] < near[0]
    return again


def subject_of_grid(
    generator: WeightGenerator, grid: Mapping[str, Any], start: Float[Tensor, "N D"], *, most: int, seed: int
) -> Subject:
    """From a `prompt_grid`: of each start the network for the best prompt, and one for another prompt."""
    prompts, observed = grid["prompts"], grid[f"test_{generator.metric}"]
    num, last = min(most, len(start)), prompts.shape[1] - 1
    row = torch.arange(num)
    other = 1 + row % last if last else row[:0]
    row, column = torch.cat([row, row[: len(other)]]), torch.cat([torch.zeros_like(row), other])
    return Subject(
        grid["theta"][row, column],
        grid[generator.origin.prompted][row, column],
        generator.origin.num_training_runs,
        num,
        float(prompts[0, 0]),
        start[row],
        hearing(prompts, observed, seed=seed),
        generator.origin.hole,
    )


class Bench(NamedTuple):
    """What networks are judged against."""

    pool: Pool
    wrong: Bool[Tensor, "C B"] | None
    """Wrong predictions of `pool.theta`."""


def quality_of(task: Task) -> tuple[str, str]:
    """The metric that stands for quality, and whether small or large is good."""
    return ("error", "min") if "error" in task.metrics else (task.metric, task.objective)


def judge(
    task: Task, bench: Bench, theta: Float[Tensor, "K D"], nearest: Float[Tensor, "K D"] | None = None
) -> Judged:
    """Judge networks; with their `nearest` training checkpoints all that there is to find."""
    overlap, overlap_nearest, unknown = (torch.full((len(theta),), torch.nan) for _ in range(3))
    wrong = wrong_predictions(task, theta) if bench.wrong is not None else None
    if wrong is not None and bench.wrong is not None:
        overlap = overlaps(wrong, bench.wrong).amax(1)
    if nearest is not None:
        theirs = wrong_predictions(task, nearest) if wrong is not None else None
        if wrong is not None and theirs is not None:
            overlap_nearest = overlaps(wrong, theirs).diagonal()
            overlap = torch.maximum(overlap, overlap_nearest)
    distance = AlignedDistance(task.spec, task.symmetry).nearest(theta, bench.pool.theta)
    quality = task.evaluate(theta, "test")[quality_of(task)[0]]
    return Judged(quality, distance, overlap, overlap_nearest, unknown)


def judge_baseline(
    task: Task, bench: Bench, name: str, num: int, prompt: float, seed: int
) -> list[tuple[str, float, Judged]]:
    """Make and judge the networks of all settings of a baseline."""
    found = []
    for i, setting in enumerate(BASELINES[name].settings):
        rng = seeded(seed, 2, list(BASELINES).index(name), i)
        theta = BASELINES[name].make(task, bench.pool, setting, num, prompt, rng)
        found.append((name, setting, judge(task, bench, theta)))
    return found


PARTS: dict[str, Callable[..., Any]] = {
    "survey": survey,
    "spans": spans,
    "measure": lambda task, _, theta: task.metrics_of(theta),
    "mistakes": lambda task, _, theta: wrong_predictions(task, theta),
    "judge": judge,
    "baseline": judge_baseline,
}
"""The parts of an audit that may run elsewhere: (task, what all share, the part's own arguments)."""

Each = Callable[[str, Any, Sequence[tuple]], list[Any]]
"""(name of a part, what all share, each one's arguments) -> their results, in order."""


def serially(task: Task) -> Each:
    """All parts one after the other, in this process."""
    return lambda name, shared, jobs: [PARTS[name](task, shared, *args) for args in jobs]


def yardsticks(held_out: Rows, column: str, metric: Float[Tensor, " Q"]) -> Float[Tensor, "Q D"]:
    """For each network a held-out checkpoint of the nearest metric, of one run after the other."""
    run = torch.arange(len(metric)) % len(held_out.run_ids)
    step = (held_out.metrics[column][run] - metric.unsqueeze(1)).abs().argmin(1)
    return held_out.theta[run, step]


def finest_checkpoints(held_out: Rows, column: str, objective: str) -> Float[Tensor, "N D"]:
    """Of every held-out run the checkpoint of the best metric: what training is able to."""
    metric = held_out.metrics[column] if objective == "min" else -held_out.metrics[column]
    return held_out.theta[torch.arange(len(metric)), metric.argmin(1)]


def audit_networks(
    subject: Subject,
    held_out: Rows,
    zoo: Zoo,
    task: Task,
    settings: AuditSettings | None = None,
    *,
    each: Each | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Audit networks: the numbers by name with the verdict, and the arrays behind the plots.

    For one generator after the other, of zoos of more and more runs say, this is the function to call:
    `audit_networks(subject_of_grid(generator, grid, start, most=32, seed=0), held_out.rows(), zoo, task)`.

    Args:
        held_out: runs that nobody trained on, the yardstick.
        each: how the parts are run; default one after the other.

    Raises:
        ValueError: there are fewer than two training runs.
    """
    settings, each = settings or AuditSettings(), each or serially(task)
    runs = training_runs(zoo, subject.num_training_runs)
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} finished training runs; an audit needs two")
    given, sound, freedom = subject, subject.sound(), freedom_of(task)
    subject = sound.distinct(task, freedom)
    counts = _counts(given, sound, subject)
    if not subject.num_best:
        return nothing_to_audit(counts), {}
    yardstick = yardsticks(held_out, zoo.header.prompted, subject.metric)
    middle = float(median(subject.metric[: subject.num_best]))
    searched = settings.searched(runs)
    search = Search(
        torch.cat([subject.theta, yardstick]),
        subject.num_training_runs,
        frozenset(searched),
        frozenset(evenly(runs, settings.pool_runs)),
        middle,
        subject.hole,
        frozenset(spanning_runs(searched, task.spec.D)),
        freedom,
    )
    units = zoo.finished_units()
    neighbours, canonical, pool, spanning = merge(
        each("survey", search, [(zoo, units[i::PARTS_OF_A_ZOO]) for i in range(PARTS_OF_A_ZOO)])
    )
    chunks = [(part,) for part in pool.theta.chunk(PARTS_OF_A_ZOO)]
    mistakes = each("mistakes", None, chunks)
    bench = Bench(pool, None if mistakes[0] is None else torch.cat(mistakes))
    finest = finest_checkpoints(held_out, zoo.header.prompted, zoo.header.objective)
    judged, families = _judge_all(each, bench, subject, (yardstick, finest), neighbours, settings)
    judged = _with_spans(each, judged, zoo, (spanning, search), neighbours)
    numbers = _distances(subject, neighbours, canonical) | dict(subject.numbers)
    numbers |= counts | {"searched_runs": len(searched), "training_runs": len(runs)}
    result, arrays = conclude(numbers, judged, families, quality_of(task), settings.seed)
    return result, arrays | {
        "distance_generated": neighbours.distance[: subject.num_best, 0],
        "distance_held_out": neighbours.distance[len(subject.theta) :, 0][: subject.num_best],
    }


def _counts(given: Subject, sound: Subject, distinct: Subject) -> dict[str, Any]:
    """How many networks there are, and which share of them is not audited."""
    return {
        "networks_given": given.num_given or len(given.theta),
        "networks_asked": len(given.theta),
        "networks": len(distinct.theta),
        "broken": 1 - len(sound.theta) / len(given.theta),
        "repeated": 1 - distinct.num_best / sound.num_best if sound.num_best else 0.0,
    }


def _judge_all(
    each: Each,
    bench: Bench,
    subject: Subject,
    held_out: tuple[Tensor, Tensor],
    neighbours: Neighbours,
    settings: AuditSettings,
) -> tuple[Subjects, dict[str, list[tuple[float, Judged]]]]:
    """The networks for the best prompt and held-out ones (yardsticks, finest), and all baselines."""
    (yardstick, finest), best, num = held_out, subject.num_best, len(subject.theta)
    nearest = neighbours.theta[:best], neighbours.theta[num:][:best]
    jobs = [(subject.theta[:best], nearest[0]), (yardstick[:best], nearest[1]), (finest,)]
    subjects = Subjects(*each("judge", bench, jobs))
    prompt = subject.prompt if subject.prompt is not None else float(median(subject.metric[:best]))
    jobs = [(name, settings.baseline_networks, prompt, settings.seed) for name in BASELINES]
    families: dict[str, list[tuple[float, Judged]]] = {name: [] for name in BASELINES}
    for found in each("baseline", bench, jobs):
        for name, setting, judged in found:
            families[name].append((setting, judged))
    return subjects, families


def _with_spans(
    each: Each, judged: Subjects, zoo: Zoo, among: tuple[Spanning, Search], neighbours: Neighbours
) -> Subjects:
    """What lies outside the span of training networks, of the networks and of their yardsticks."""
    best, half = len(judged.made.quality), len(neighbours.run) // 2
    rows = torch.cat([torch.arange(best), half + torch.arange(best)])
    parts = rows.chunk(PARTS_OF_A_ZOO)
    jobs = [(zoo, among[1].queries[part], neighbours.run[part]) for part in parts]
    made, held_out = torch.cat(each("spans", among, jobs)).split(best)
    return judged._replace(
        made=judged.made._replace(off_span=made), held_out=judged.held_out._replace(off_span=held_out)
    )


SAME = 0.02
"""Distance, relative to its norm, to a network that one is once more."""
COPY = 1 / 3
"""A copy is nearer its nearest training run than this share of the way to the next run ..."""
TWIN = 0.05
"""... or, if the next one is the same once more, nearer than this share of what held-out runs are."""
NEAR_QUANTILE = 0.05


def _distances(subject: Subject, neighbours: Neighbours, canonical: Neighbours) -> dict[str, float | None]:
    """Numbers of the search: the first half of the neighbours is of the subject, the other of yardsticks."""
    num, best = len(subject.theta), subject.num_best
    first = neighbours.distance[:, 0].double()
    share = torch.minimum(*(each.distance[:, 0] / each.distance[:, 1] for each in (neighbours, canonical)))
    relative, reference = relative_distances(first[:num], first[num:], subject.metric)
    ours, theirs = median(first[:best]), median(first[num:][:best])
    near = reference.quantile(NEAR_QUANTILE)
    moved = None
    if subject.start is not None:
        moved = float(median((subject.theta - subject.start).norm(dim=1)[:best]))
    return {
        "distance_generated": float(ours),
        "distance_held_out": float(theirs),
        "distance_ratio": float(ours / theirs),
        "relative_distance": float(median(relative)),
        "near_rate": float((relative < near).double().mean()),
        "copy_rate": float(((share[:num] < COPY) | (relative < TWIN)).double().mean()),
        "copy_rate_held_out": float(((share[num:] < COPY) | (reference < TWIN)).double().mean()),
        "distance_to_start": moved,
    }


def relative_distances(
    ours: Float[Tensor, " Q"], theirs: Float[Tensor, " Q"], metric: Float[Tensor, " Q"]
) -> tuple[Float[Tensor, " Q"], Float[Tensor, " Q"]]:
    """Distances of networks, and of their yardsticks, over what yardsticks of about the same metric have.

    Early in training all networks are as far apart as their initialisations are, later on less or more: each
    distance is held against the median of the yardsticks that are nearest in metric, an eighth of them. A
    yardstick is not held against itself.
    """
    gap = (metric.unsqueeze(1) - metric).abs()
    others = gap.clone().fill_diagonal_(torch.inf)
    few = max(1, min(len(metric) - 1, max(3, len(metric) // 8)))
    found = []
    for distance, near in ((ours, gap), (theirs, others)):
        level = median(theirs[near.topk(few, largest=False).indices], 1)
        found.append(distance / level.clamp_min(1e-12))
    return found[0], found[1]
