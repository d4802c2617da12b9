"""Pairs: two moments of one run, every metric level a target; a feed that depends on the step alone."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from generator.training.pairs import DRAWS, Pairs, PairsName, Reservoir, Runs, WindowFeed, sample_by_spacing

STEPS = 40


def rng_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(first: int, num: int, metric: Tensor | None = None) -> Runs:
    """Runs whose coordinates say which run and step they are."""
    run = torch.arange(first, first + num).float().unsqueeze(1).expand(num, STEPS)
    step = torch.arange(STEPS).float().expand(num, STEPS)
    falling = 1 / (1 + step) + 0.01 * run
    return Runs(torch.stack([run, step], 2), (falling if metric is None else metric).unsqueeze(2))


def reservoir_of(runs: Runs) -> Reservoir:
    reservoir = Reservoir(len(runs.z))
    reservoir.push(runs)
    return reservoir


def test_the_start_precedes_the_target_in_the_same_run() -> None:
    runs = labelled(0, 20)
    pairs = reservoir_of(runs).sample(5000, rng=rng_of(0))
    assert torch.equal(pairs.start[:, 0], pairs.target[:, 0])
    i, j = pairs.start[:, 1].long(), pairs.target[:, 1].long()
    assert ((i < j) | ((i == 0) & (j == 0))).all()  # an initialisation may be its own target
    run = pairs.start[:, 0].long()
    assert torch.equal(pairs.start_metric, runs.metric[run, i])
    assert torch.equal(pairs.prompt, runs.metric[run, j])
    assert len(run.unique()) == 20


def test_about_half_of_the_starts_are_initialisations() -> None:
    pairs = reservoir_of(labelled(0, 20)).sample(20_000, rng=rng_of(0))
    late = pairs.target[:, 1] >= STEPS / 2  # where a uniform start is rarely the initialisation
    share = (pairs.start[late, 1] == 0).float().mean()
    # .5, and .5 * 1/30 by the others; the standard deviation of the share of some 5,000 is .007
    assert 0.48 < share < 0.56
    others = pairs.start[late & (pairs.start[:, 1] > 0), 1]
    assert len(others.unique()) > STEPS / 2


def test_every_metric_level_is_a_target() -> None:
    """A steep beginning and a long floor: of 64 runs, each has one checkpoint between 0 and 1."""
    metric = torch.zeros(64, STEPS)
    metric[:, 0] = 1.0
    metric[:, 1] = (torch.arange(64) + 0.5) / 64
    pairs = reservoir_of(labelled(0, 64, metric)).sample(20_000, rng=rng_of(0))
    share = torch.histc(pairs.prompt, 16, 0, 1) / 20_000
    # half of the targets spread over 16 bins: .031 each; a uniform choice of steps would give .0016
    assert share.min() > 0.02


def test_every_checkpoint_can_be_a_target() -> None:
    pairs = reservoir_of(labelled(0, 8)).sample(20_000, rng=rng_of(0))
    assert len(pairs.target.unique(dim=0)) == 8 * STEPS


def test_no_pair_has_a_checkpoint_from_where_its_run_was_no_longer_finite() -> None:
    runs = labelled(0, 6)
    runs.metric[1, 7:] = torch.inf
    runs.metric[2, 9] = torch.nan  # finite again afterwards: still lost
    runs.z[3, 5, 0] = torch.nan  # with a metric that looks fine
    runs.metric[4] = torch.nan
    pairs = reservoir_of(runs).sample(20_000, rng=rng_of(0))
    assert all(tensor.isfinite().all() for tensor in pairs)
    last = {r: int(pairs.target[pairs.target[:, 0] == r, 1].max()) for r in (0, 1, 2, 3, 5)}
    assert last == {0: STEPS - 1, 1: 6, 2: 8, 3: 4, 5: STEPS - 1}
    assert not (pairs.target[:, 0] == 4).any()


def test_nothing_to_draw_from_is_said() -> None:
    with pytest.raises(ValueError, match="no runs to draw pairs from"):
        Reservoir(3).sample(1, rng=rng_of(0))
    with pytest.raises(ValueError, match="diverged"):
        reservoir_of(labelled(0, 2, torch.full((2, STEPS), torch.nan))).sample(1, rng=rng_of(0))
    with pytest.raises(ValueError, match="at least one run"):
        Reservoir(0)


@pytest.mark.parametrize("kind", list(DRAWS))
def test_runs_of_one_checkpoint_are_no_pairs(kind: PairsName) -> None:
    """And have not diverged; an imported zoo may hold nothing else."""
    runs = labelled(0, 3)
    with pytest.raises(ValueError, match="runs have 1 checkpoint each, and a pair is two of one run"):
        DRAWS[kind](reservoir_of(Runs(runs.z[:, :1], runs.metric[:, :1])), 5, rng=rng_of(0))


def test_the_window_holds_the_latest_runs() -> None:
    reservoir = Reservoir(4)
    for first, num, expected in [(0, 3, {0, 1, 2}), (3, 2, {1, 2, 3, 4}), (5, 4, {5, 6, 7, 8}), (9, 1, None)]:
        reservoir.push(labelled(first, num))
        seen = {int(r) for r in reservoir.sample(500, rng=rng_of(0)).start[:, 0]}
        assert seen == (expected or {6, 7, 8, 9})
        assert len(reservoir) == len(seen)


def test_the_same_generator_state_draws_the_same_pairs() -> None:
    reservoir = reservoir_of(labelled(0, 5))
    first, again, other = (reservoir.sample(50, rng=rng_of(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.target, other.target)


def test_parts_of_a_sample_are_that_sample() -> None:
    reservoir, rng, other = reservoir_of(labelled(0, 5)), rng_of(1), rng_of(1)
    parts = reservoir.samples(50, rng=rng, numbers=21)
    expected = reservoir.sample(50, rng=other)
    assert torch.equal(rng.get_state(), other.get_state()), "all is drawn before the first part is asked for"
    parts = list(parts)
    assert [len(part.prompt) for part in parts] == [10] * 5  # of 2 numbers each
    for k, whole in enumerate(expected):
        assert torch.equal(torch.cat([part[k] for part in parts]), whole)


def stream(num_runs: int, chunk: int, epochs: int | None = None) -> Iterator[Runs]:
    """Runs 0 .. num_runs - 1 in chunks, over and over."""
    while epochs is None or epochs > 0:
        for first in range(0, num_runs, chunk):
            yield labelled(first, min(chunk, num_runs - first))
        epochs = None if epochs is None else epochs - 1


def drawn(feed: WindowFeed, begin: int, end: int) -> dict[int, Pairs]:
    feed.begin(begin)
    return {step: feed.draw(step, 8, rng_of(step)) for step in range(begin, end)}


@pytest.mark.parametrize(
    ("num_runs", "capacity", "chunk", "refill_every"),
    [(6, 10, 4, 5), (6, 6, 6, 5), (10, 4, 3, 5), (10, 4, 7, 1), (7, 3, 20, 2), (300, 250, 64, 3)],
)
@pytest.mark.parametrize("begin", [1, 17, 60])
def test_what_a_feed_draws_depends_on_the_step_alone(
    num_runs: int, capacity: int, chunk: int, refill_every: int, begin: int
) -> None:
    """A resumed training sees what the uninterrupted one would have seen."""

    def feed(chunk: int) -> WindowFeed:
        return WindowFeed(
            stream(num_runs, chunk), num_runs, capacity_runs=capacity, refill_every=refill_every
        )

    whole, resumed = drawn(feed(chunk), 0, 90), drawn(feed(chunk + 1), begin, 90)
    for step, pairs in resumed.items():
        for a, b in zip(whole[step], pairs, strict=True):
            assert torch.equal(a, b), step


def test_a_zoo_that_fits_is_read_once_and_seen_whole() -> None:
    feed = WindowFeed(stream(6, 4, epochs=1), 6, capacity_runs=100)
    pairs = drawn(feed, 0, 300)
    assert {int(r) for p in pairs.values() for r in p.start[:, 0]} == set(range(6))


def test_a_larger_zoo_passes_through_the_window() -> None:
    feed = WindowFeed(stream(10, 3), 10, capacity_runs=4, refill_every=5)
    pairs = drawn(feed, 0, 60)
    early = {int(r) for step in range(5) for r in pairs[step].start[:, 0]}
    assert early <= {0, 1, 2, 3}
    assert {int(r) for p in pairs.values() for r in p.start[:, 0]} == set(range(10))
    late = {int(r) for step in range(55, 60) for r in pairs[step].start[:, 0]}
    assert late <= {1, 2, 3, 4}  # 11 runs were replaced, one after the other: 11, 12, 13, 14 modulo 10


def test_published_pairs_have_uniform_spacings_and_starts() -> None:
    num = 60_000
    pairs = sample_by_spacing(reservoir_of(labelled(0, 20)), num, rng=rng_of(0))
    assert torch.equal(pairs.start[:, 0], pairs.target[:, 0])
    i, j = pairs.start[:, 1].long(), pairs.target[:, 1].long()
    count = torch.bincount(j - i, minlength=STEPS)
    assert count[0] == 0
    # each of 39 spacings 1538 times, with a standard deviation of 39: the extremes within five
    assert 1343 < int(count[1:].min()) <= int(count.max()) < 1733
    starts = torch.bincount(i[j - i == STEPS - 4], minlength=5)
    assert (starts[:4] > 0).all()
    assert starts[4] == 0
    # P(start = initialisation) = mean over spacings k of 1 / (S - k) = H_39 / 39 = .109; so are final targets
    expected = sum(1 / n for n in range(1, STEPS)) / (STEPS - 1)
    for share in ((i == 0).float().mean(), (j == STEPS - 1).float().mean()):
        assert abs(float(share) - expected) < 5 * (expected / num) ** 0.5


def test_published_pairs_hardly_ever_aim_at_the_beginning() -> None:
    """Of 200 checkpoints the first is a start in 2.95 %, the second a target in 2.5e-5, which is 1/199^2."""
    metric = torch.rand(4, 200)
    z = torch.arange(200.0).expand(4, 200).unsqueeze(2).contiguous()
    pairs = sample_by_spacing(reservoir_of(Runs(z, metric.unsqueeze(2))), 400_000, rng=rng_of(0))
    assert abs(float((pairs.start[:, 0] == 0).float().mean()) - 0.0295) < 0.002
    assert int((pairs.target[:, 0] == 1).sum()) < 40  # 10 expected: more has a chance of 1e-12


def test_published_pairs_leave_out_runs_that_diverged_whole() -> None:
    runs = labelled(0, 6)
    runs.metric[1, 7:] = torch.inf
    runs.z[3, 5, 0] = torch.nan
    pairs = sample_by_spacing(reservoir_of(runs), 5000, rng=rng_of(0))
    assert {int(r) for r in pairs.start[:, 0]} == {0, 2, 4, 5}
    with pytest.raises(ValueError, match="no training run of the zoo is finite throughout"):
        sample_by_spacing(reservoir_of(labelled(0, 2, torch.full((2, STEPS), torch.nan))), 1, rng=rng_of(0))
    with pytest.raises(ValueError, match="no runs to draw pairs from"):
        sample_by_spacing(Reservoir(3), 1, rng=rng_of(0))


def test_a_feed_draws_the_pairs_it_is_told_to() -> None:
    feeds = {kind: WindowFeed(stream(6, 4), 6, capacity_runs=6, pairs=kind) for kind in DRAWS}
    for kind, feed in feeds.items():
        feed.begin(0)
        drawn, expected = feed.draw(3, 50, rng_of(1)), DRAWS[kind](feed.reservoir, 50, rng=rng_of(1))
        assert torch.equal(drawn.target, expected.target), kind


def test_checkpoints_are_drawn_uniformly_among_the_usable() -> None:
    runs = labelled(0, 4)
    runs.metric[1, 7:] = torch.nan
    parts = list(reservoir_of(runs).checkpoints(20_000, rng=rng_of(0), numbers=6001))
    assert {len(part) for part in parts[:-1]} == {3000}  # of 2 numbers each
    drawn = torch.cat(parts)
    assert len(drawn) == 20_000
    count = torch.bincount((drawn[:, 0] * STEPS + drawn[:, 1]).long(), minlength=4 * STEPS)
    assert not count[STEPS + 7 : 2 * STEPS].any()
    usable = count[count > 0]
    assert len(usable) == 3 * STEPS + 7
    # 157 each with a standard deviation of 12.5; five of them
    assert 94 < int(usable.min()) <= int(usable.max()) < 220
    with pytest.raises(ValueError, match="no finite checkpoint"):
        reservoir_of(labelled(0, 2, torch.full((2, STEPS), torch.nan))).checkpoints(1, rng=rng_of(0))
