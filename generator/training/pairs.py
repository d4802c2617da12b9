"""Pairs: two moments of one training run, (theta, metric) -> (theta*, metric*), the generator's examples."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PART_NUMBERS = 2**22
"""Numbers of networks in a part of a large sample, 16 MB: memory does not grow with the sample."""


class Runs(NamedTuple):
    """Checkpoints of R runs at S steps, in the generator's coordinates, with M metrics, the main first."""

    z: Float[Tensor, "R S Z"]
    metric: Float[Tensor, "R S M"]


class Pairs(NamedTuple):
    """B examples: from the start network and its metrics to the target, whose metrics are the prompts.

    A prompt of NaN is none: the denoiser then sees neither it nor the start network's metric.
    """

    start: Float[Tensor, "B Z"]
    start_metric: Float[Tensor, "B M"]
    target: Float[Tensor, "B Z"]
    prompt: Float[Tensor, "B M"]


class Reservoir:
    """The runs that pairs are drawn from: a window over a stream of runs, the oldest replaced first.

    Pairs are stratified. Of the targets, half are drawn by a metric level uniform between the extremes of the
    window (of several metrics, of each in turn), half uniformly among checkpoints, so that every level is a
    target: a uniform choice of steps starves the early, steep part of training (Peebles et al. 2022 drew 3e-5
    of their targets from three quarters of their prompts' range). Half of the starts are initialisations, the
    others uniform among the checkpoints before the target. A run is usable up to its first non-finite number.
    """

    def __init__(self, capacity_runs: int, *, levels: int = 64):
        if capacity_runs < 1:
            raise ValueError(f"a reservoir holds at least one run, got {capacity_runs}")
        self.capacity_runs = capacity_runs
        self.levels = levels
        self.begin = self.end = 0
        """The stretch of the stream that it has taken; run i of the stream stands at place i % capacity."""

    def __len__(self) -> int:
        return min(self.end - self.begin, self.capacity_runs)

    def push(self, runs: Runs) -> None:
        """Add runs, at most `capacity_runs` at once, in the place of the oldest.

        Raises:
            ValueError: they have no two checkpoints.
        """
        if runs.metric.shape[1] < 2:
            raise ValueError(
                f"runs have {runs.metric.shape[1]} checkpoint each, and a pair is two of one run: there is "
                "nothing to learn from; give a zoo with at least 2 checkpoints of every run"
            )
        if self.begin == self.end:
            self._z = torch.empty(self.capacity_runs, *runs.z.shape[1:])
            self._metric = torch.empty(self.capacity_runs, *runs.metric.shape[1:])
            self._usable = torch.zeros(self.capacity_runs, runs.metric.shape[1], dtype=torch.bool)
        places = (self.end + torch.arange(len(runs.z))) % self.capacity_runs
        self._z[places], self._metric[places] = runs.z, runs.metric
        self._usable[places] = (runs.metric.isfinite().all(-1) & runs.z.isfinite().all(-1)).cumprod(1).bool()
        self.end += len(runs.z)
        self._index = None

    def sample(self, num: int, *, rng: torch.Generator) -> Pairs:
        """`num` pairs; the same window and generator state give the same pairs."""
        return self._pairs(*self._places(num, rng))

    def samples(self, num: int, *, rng: torch.Generator, numbers: int = PART_NUMBERS) -> Iterator[Pairs]:
        """The very pairs of `sample` in parts, whose networks have so many numbers at most."""
        places = self._places(num, rng)
        parts = (each.split(self._at_once(numbers)) for each in places)
        return (self._pairs(*part) for part in zip(*parts, strict=True))

    def _at_once(self, numbers: int) -> int:
        return max(1, numbers // self._z.shape[2])

    def _pairs(self, run: Tensor, i: Tensor, j: Tensor) -> Pairs:
        return Pairs(self._z[run, i], self._metric[run, i], self._z[run, j], self._metric[run, j])

    def _places(self, num: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(run, step of the start, step of the target) of `num` pairs."""
        if not len(self):
            raise ValueError("no runs to draw pairs from: the zoo has no finished training runs")
        if self._index is None:
            self._index = [self._levels(i) for i in range(self._metric.shape[2])]
        num_steps, place = self._metric.shape[1], torch.arange(num)
        drawn = [_by_level(*levels, num, rng) for levels in self._index]
        by_level = torch.stack(drawn)[place % len(drawn), place]
        order, _, _ = self._index[0]
        by_order = order[torch.randint(len(order), (num,), generator=rng)]
        target = torch.where(torch.rand(num, generator=rng) < 0.5, by_level, by_order)
        run, j = target // num_steps, target % num_steps
        earlier = (torch.rand(num, generator=rng) * j).long()  # 0 .. j-1; 0 for j = 0
        i = torch.where(torch.rand(num, generator=rng) < 0.5, torch.zeros_like(j), earlier)
        return run, i, j

    def checkpoints(
        self, num: int, *, rng: torch.Generator, numbers: int = PART_NUMBERS
    ) -> Iterator[Float[Tensor, "P Z"]]:
        """`num` usable checkpoints, drawn uniformly, in parts of so many numbers at most."""
        usable = self._usable.flatten().nonzero().squeeze(1)
        if not len(usable):
            raise ValueError("no finite checkpoint to draw: all training runs of the zoo diverged")
        chosen = usable[torch.randint(len(usable), (num,), generator=rng)]
        return (self._z.flatten(0, 1)[part] for part in chosen.split(self._at_once(numbers)))

    def best(self, objective: str) -> Float[Tensor, " Z"]:
        """The usable checkpoint of the window with the best main metric."""
        order, _, _ = self._levels(0)
        values = self._metric[..., 0].flatten()[order]
        chosen = order[values.argmin() if objective == "min" else values.argmax()]
        return self._z.flatten(0, 1)[chosen].clone()

    def whole_runs(self) -> tuple[Float[Tensor, "R S Z"], Float[Tensor, "R S M"], Int[Tensor, " W"]]:
        """(coordinates, metrics, the places of runs that are usable to their end)"""
        whole = self._usable.all(1).nonzero().squeeze(1) if len(self) else torch.zeros(0, dtype=torch.long)
        if not len(whole):
            raise ValueError("no runs to draw pairs from: no training run of the zoo is finite throughout")
        return self._z, self._metric, whole

    def _levels(self, metric: int) -> tuple[Tensor, Tensor, Tensor]:
        """Usable checkpoints ordered by a metric's level: (flat index, first of each level, how many of
        each)."""
        usable = self._usable.flatten().nonzero().squeeze(1)
        if not self._usable[:, 1:].any():
            raise ValueError("all training runs of the zoo diverged at once: there is nothing to learn from")
        values = self._metric[..., metric].flatten()[usable]
        low, high = values.min(), values.max()
        level = (
            ((values - low) / (high - low).clamp_min(1e-12) * self.levels).long().clamp_max(self.levels - 1)
        )
        by_level = level.argsort(stable=True)
        count = torch.bincount(level, minlength=self.levels)
        first = count.cumsum(0) - count
        return usable[by_level], first[count > 0], count[count > 0]


def _by_level(order: Tensor, first: Tensor, count: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Checkpoints of levels drawn uniformly, as flat indices."""
    level = torch.randint(len(count), (num,), generator=rng)
    within = (torch.rand(num, generator=rng, dtype=torch.float64) * count[level]).long()
    return order[first[level] + within]


def sample_by_spacing(reservoir: Reservoir, num: int, *, rng: torch.Generator) -> Pairs:
    """`num` pairs as published (Peebles et al. 2022): of a run, the spacing first, then where it begins.

    Of S checkpoints the spacing k is uniform in 1 .. S - 1, the start in 0 .. S - 1 - k; metrics have no say,
    and the early part of training is hardly ever the target. A run that is not finite throughout is left out
    whole.
    """
    z, metric, whole = reservoir.whole_runs()
    run = whole[torch.randint(len(whole), (num,), generator=rng)]
    last = metric.shape[1] - 1
    spacing = torch.randint(1, last + 1, (num,), generator=rng)
    i = (torch.rand(num, generator=rng, dtype=torch.float64) * (last + 1 - spacing)).long()
    j = i + spacing
    return Pairs(z[run, i], metric[run, i], z[run, j], metric[run, j])


PairsName = Literal["stratified", "published"]
Draw = Callable[..., Pairs]
"""(reservoir, num, *, rng) -> pairs"""
DRAWS: dict[PairsName, Draw] = {"stratified": Reservoir.sample, "published": sample_by_spacing}


class WindowFeed:
    """Pairs for every training step from an endless stream of runs: what is drawn depends on the step alone.

    The window is filled once; where the zoo is larger than it, `refill_runs` runs of the stream replace the
    oldest after every `refill_every` steps. Resuming at a step needs no stored data: the stream is skipped to
    where the window of that step begins.
    """

    def __init__(
        self,
        stream: Iterator[Runs],
        num_runs: int,
        *,
        capacity_runs: int,
        refill_every: int = 50,
        pairs: PairsName = "stratified",
    ):
        self._stream, self._rest, self._draw = stream, None, DRAWS[pairs]
        self.num_runs = num_runs
        self.reservoir = Reservoir(min(capacity_runs, num_runs))
        self.refill_every = refill_every
        self.refill_runs = max(1, self.reservoir.capacity_runs // 100) if num_runs > capacity_runs else 0

    def begin(self, step: int) -> None:
        """Fill the window as it stands at a step; call it once, before the first `draw`."""
        first = self._end(step) - self.reservoir.capacity_runs
        self._skip(first % self.num_runs)
        self.reservoir.begin = self.reservoir.end = first
        self._fill(step)

    def draw(self, step: int, num: int, rng: torch.Generator) -> Pairs:
        """The pairs of a step; steps are asked for in ascending order."""
        self._fill(step)
        return self._draw(self.reservoir, num, rng=rng)

    def _end(self, step: int) -> int:
        return self.reservoir.capacity_runs + step // self.refill_every * self.refill_runs

    def _fill(self, step: int) -> None:
        while (lacking := self._end(step) - self.reservoir.end) > 0:
            self.reservoir.push(self._take(min(lacking, self.reservoir.capacity_runs)))

    def _skip(self, num: int) -> None:
        while num:
            num -= len(self._take(num).z)

    def _take(self, most: int) -> Runs:
        runs = self._rest or next(self._stream)
        self._rest = Runs(runs.z[most:], runs.metric[most:]) if len(runs.z) > most else None
        return Runs(runs.z[:most], runs.metric[:most])
