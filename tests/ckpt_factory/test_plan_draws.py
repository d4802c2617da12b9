"""What a plan draws: its distributions, what is drawn per block, group and run, and what depends on what."""

from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from ckpt_factory import RunPlan, RunSettings
from ckpt_factory.optim import OPTIMIZERS
from ckpt_factory.plan import InitName, LossName, OptimizerName

DIVERSE = RunPlan(
    seed=4,
    batch_size=(16, 32, 64),
    optimizer=get_args(OptimizerName),
    lr=(1e-3, 1e-1),
    weight_decay=(1e-6, 1e-2),
    momentum=(0.5, 0.95),
    init=get_args(InitName),
    init_scale=(0.25, 4.0),
    label_noise=(0.1, 0.4),
    data_fraction=(0.2, 0.9),
    loss=get_args(LossName),
    gamma=(0.2, 0.8),
    group_size=3,
    block_size=6,
)
PER_RUN = {"lr", "weight_decay", "momentum", "init", "init_scale", "loss", "gamma"}
PER_GROUP = {"order_id", "label_noise", "data_fraction"}
PER_BLOCK = {"optimizer", "batch_size"}


@pytest.fixture(scope="module")
def many_runs() -> list[RunSettings]:
    """400 runs, each a group and a block of its own, all of SGD and TaiLr."""
    plan = replace(DIVERSE, optimizer=("sgd",), loss=("tailr",), group_size=1, block_size=1)
    return plan.runs(range(400))


def position(name: str, values: list[float]) -> np.ndarray:
    """Where in their range, between 0 and 1, on the scale that they are uniform on."""
    at = np.array(values)
    low, high = getattr(DIVERSE, name)
    assert low <= at.min()
    assert at.max() <= high
    if name in ("lr", "weight_decay", "init_scale"):
        low, high, at = np.log(low), np.log(high), np.log(at)
    return (at - low) / (high - low)


RANGES = ["lr", "weight_decay", "init_scale", "momentum", "label_noise", "data_fraction", "gamma"]


@pytest.mark.parametrize("name", RANGES)
def test_ranges_are_drawn_from_uniformly_on_their_scale(many_runs: list[RunSettings], name: str) -> None:
    drawn = position(name, [getattr(run, name) for run in many_runs])
    assert kstest(drawn, "uniform").pvalue > 1e-3  # one fixed sample: not a matter of luck


@pytest.mark.parametrize("name", ["batch_size", "init"])
def test_choices_are_equally_likely(many_runs: list[RunSettings], name: str) -> None:
    counts, choices = Counter(getattr(run, name) for run in many_runs), getattr(DIVERSE, name)
    assert set(counts) == set(choices)
    # the standard deviation of a share of 400 draws is 0.025 at most
    assert max(abs(n / 400 - 1 / len(choices)) for n in counts.values()) < 0.08


def test_optimizers_and_losses_are_equally_likely() -> None:
    runs = replace(DIVERSE, group_size=1, block_size=1).runs(range(400))
    for name in ("optimizer", "loss"):
        counts, choices = Counter(getattr(run, name) for run in runs), getattr(DIVERSE, name)
        assert set(counts) == set(choices)
        assert max(abs(n / 400 - 1 / len(choices)) for n in counts.values()) < 0.08  # as above


def test_everything_is_drawn_independently(many_runs: list[RunSettings]) -> None:
    columns = [position(name, [getattr(run, name) for run in many_runs]) for name in RANGES]
    for name in ("batch_size", "init"):
        columns.append(np.array([getattr(DIVERSE, name).index(getattr(run, name)) for run in many_runs]))
    correlation = np.corrcoef(columns)
    # the standard error of a correlation of 400 draws is 0.05, and there are 36 of them
    assert np.abs(correlation - np.eye(len(columns))).max() < 0.18


def test_optimizer_and_batch_size_are_drawn_per_block_data_per_group_and_the_rest_per_run() -> None:
    runs = [run.columns() for run in DIVERSE.runs(range(240))]
    assert {"run_id"} | PER_RUN | PER_GROUP | PER_BLOCK == set(runs[0])
    for names, size in ((PER_BLOCK, 6), (PER_GROUP, 3)):
        parts = [runs[i : i + size] for i in range(0, len(runs), size)]
        for name in names:
            values = [{run[name] for run in part} for part in parts]
            assert all(len(of_part) == 1 for of_part in values), name
            assert any(a != b for a, b in pairwise(values)), name
    seen = {(run["optimizer"], run["batch_size"]) for run in runs}
    assert len(seen) == 15
    for name in PER_GROUP:
        assert len({run[name] for run in runs}) == 80, f"{name} is drawn for each group"
    for name in ("lr", "weight_decay", "momentum", "init_scale"):
        assert len({run[name] for run in runs}) == 240, f"{name} is drawn for each run"
    for name in ("init", "loss"):
        assert any(len({run[name] for run in runs[i : i + 3]}) > 1 for i in range(0, 240, 3)), name


def test_every_cycle_of_blocks_has_each_combination_once_in_an_order_of_its_own() -> None:
    def combinations(cycle: int, plan: RunPlan = DIVERSE) -> list[tuple[str, int]]:
        runs = plan.runs(range(90 * cycle, 90 * cycle + 90, 6))  # one of each of 15 blocks of 6
        return [(run.optimizer, run.batch_size) for run in runs]

    cycles = [combinations(cycle) for cycle in range(6)]
    assert {frozenset(cycle) for cycle in cycles} == {frozenset(product(DIVERSE.optimizer, (16, 32, 64)))}
    assert all(len(set(cycle)) == 15 for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) == 6
    assert combinations(0, replace(DIVERSE, seed=5)) != cycles[0]


def test_a_run_does_not_depend_on_which_others_there_are() -> None:
    together = DIVERSE.runs(range(50))
    assert DIVERSE.runs(range(40, 50)) == together[40:]
    assert [DIVERSE.run(i) for i in (49, 7, 0)] == [together[i] for i in (49, 7, 0)]
    another = replace(DIVERSE, seed=5).runs(range(50))
    for name in set(RANGES) - {"gamma"}:
        assert not {getattr(run, name) for run in together} & {getattr(run, name) for run in another}, name


def test_draws_are_those_that_zoos_on_disk_were_made_by() -> None:
    """A zoo is resumed and verified by drawing its runs again: a change here would disown every zoo."""
    plan = replace(DIVERSE, optimizer=("sgd",))
    for run_id in (0, 73_912):
        run = plan.run(run_id)
        of_run = np.random.default_rng([4, 2, run_id]).random(7)
        of_group = np.random.default_rng([4, 3, run_id // 3]).random(2)
        cycle, place = divmod(run_id // 6, 3)
        order = np.random.default_rng([4, 4, cycle]).random(3).argsort()
        # the exponential function of another library may differ in its last digit
        assert run.lr == pytest.approx(1e-3 * 100 ** of_run[0], rel=1e-12)
        assert run.weight_decay == pytest.approx(1e-6 * 1e4 ** of_run[1], rel=1e-12)
        assert run.init_scale == pytest.approx(0.25 * 16 ** of_run[2], rel=1e-12)
        assert run.momentum == pytest.approx(0.5 + 0.45 * of_run[3], rel=1e-12)
        assert run.init == ("default", "kaiming", "xavier", "orthogonal")[int(4 * of_run[4])]
        assert run.loss == ("cross-entropy", "tailr")[int(2 * of_run[5])]
        if run.loss == "tailr":
            assert run.gamma == pytest.approx(0.2 + 0.6 * of_run[6], rel=1e-12)
        assert run.label_noise == pytest.approx(0.1 + 0.3 * of_group[0], rel=1e-12)
        assert run.data_fraction == pytest.approx(0.2 + 0.7 * of_group[1], rel=1e-12)
        assert run.batch_size == (16, 32, 64)[order[place]]


def in_sgds_units(run: RunSettings) -> dict[str, Any]:
    ratio = OPTIMIZERS[run.optimizer].lr_ratio
    # to ten digits: multiplied by the ratio and divided by it again
    return asdict(run) | {
        "lr": float(f"{run.lr / ratio:.10g}"),
        "weight_decay": float(f"{run.weight_decay * ratio:.10g}"),
    }


@pytest.mark.parametrize(
    ("change", "may_differ"),
    [
        ({"lr": (0.5, 0.5)}, {"lr"}),
        ({"weight_decay": (0.0, 0.0)}, {"weight_decay"}),
        ({"momentum": (0.0, 0.1)}, {"momentum"}),
        ({"init": ("default",)}, {"init"}),
        ({"init_scale": (1.0, 1.0)}, {"init_scale"}),
        ({"label_noise": (0.0, 0.0)}, {"label_noise"}),
        ({"data_fraction": (1.0, 1.0)}, {"data_fraction"}),
        ({"loss": ("tailr",)}, {"loss", "gamma"}),
        ({"gamma": (0.0, 0.1)}, {"gamma"}),
        ({"optimizer": ("lion", "sgd")}, {"optimizer", "batch_size"}),  # they are drawn as a pair
        ({"batch_size": (8,)}, {"optimizer", "batch_size"}),
        ({"group_size": 2}, {"order_id", "label_noise", "data_fraction"}),
        ({"block_size": 12}, {"optimizer", "batch_size"}),
        ({"num_steps": 900, "num_checkpoints": 9}, set()),
        ({"spacing": "random"}, set()),
        ({"schedule": "constant", "schedule_every": 9}, set()),
        ({"precision": "bfloat16", "compile": True}, set()),
    ],
)
def test_a_change_of_one_distribution_leaves_the_other_draws(change: dict, may_differ: set[str]) -> None:
    before = [in_sgds_units(run) for run in DIVERSE.runs(range(24))]
    after = [in_sgds_units(run) for run in replace(DIVERSE, **change).runs(range(24))]
    differing = {name for name in before[0] if [run[name] for run in before] != [run[name] for run in after]}
    assert differing == may_differ


def test_rates_are_in_the_optimizers_own_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """lr times its ratio and weight decay divided by it: their product, by which parameters decay, stays."""
    ratios = {"sgd": 1.0, "adamw": 0.1, "lion": 0.03, "tiger": 0.2, "amos": 4.0}
    table = {name: SimpleNamespace(lr_ratio=ratio) for name, ratio in ratios.items()}
    monkeypatch.setattr("ckpt_factory.plan.OPTIMIZERS", table)
    plan = replace(DIVERSE, lr=(0.2, 0.2), weight_decay=(1e-3, 1e-3))
    for run in plan.runs(range(100)):
        assert run.lr == pytest.approx(0.2 * ratios[run.optimizer])
        assert run.lr * run.weight_decay == pytest.approx(0.2 * 1e-3)


def test_gamma_is_tailrs_and_zero_for_cross_entropy() -> None:
    runs = DIVERSE.runs(range(100))
    assert {run.loss for run in runs} == set(get_args(LossName))
    for run in runs:
        assert 0.2 <= run.gamma <= 0.8 if run.loss == "tailr" else run.gamma == 0
    assert RunPlan().run(0).gamma == 0
    assert RunPlan(loss=("tailr",)).run(0).gamma == pytest.approx(0.1)


def test_the_variation_of_a_stack_is_that_of_its_groups_and_runs() -> None:
    runs = DIVERSE.runs(range(6, 12))
    variation = DIVERSE.variation(runs)
    assert variation.label_noise == (runs[0].label_noise, runs[3].label_noise)
    assert variation.data_fraction == (runs[0].data_fraction, runs[3].data_fraction)
    assert variation.gamma == tuple(run.gamma for run in runs)
    assert not variation.is_plain
    plain = RunPlan(group_size=3)
    assert plain.variation(plain.runs(range(6))).is_plain


@pytest.mark.parametrize("first", [0, 3, 9])
def test_blocks_split_a_stack_where_optimizer_or_batch_size_change(first: int) -> None:
    runs = DIVERSE.runs(range(first, 60))
    blocks = DIVERSE.blocks(runs)
    assert [run for block in blocks for run in block] == runs
    kinds = [{(run.optimizer, run.batch_size) for run in block} for block in blocks]
    assert all(len(kind) == 1 for kind in kinds)
    assert all(a != b for a, b in pairwise(kinds))
    assert all(len(block) % 3 == 0 for block in blocks), "no group is cut in two"


def test_one_kind_of_run_is_one_block_whatever_the_block_size() -> None:
    plan = RunPlan(group_size=5, block_size=2)
    assert len(plan.blocks(plan.runs(range(20)))) == 1


def test_streams_of_one_seed_are_different_ones() -> None:
    """Initialisation, order and steps of one number are not drawn from the same stream."""
    plan = RunPlan(seed=3)
    runs = plan.runs([5])
    (init,), (order,) = plan.init_rngs(runs), plan.order_rngs(runs)
    drawn = [torch.rand(1, generator=init).item(), torch.rand(1, generator=order).item()]
    drawn += [float(np.random.default_rng([3, stream, 5]).random()) for stream in range(2, 7)]
    assert len(set(drawn)) == 7


@pytest.mark.parametrize(
    ("plan", "num_runs", "words"),
    [
        ({}, 64, ""),
        ({"optimizer": ("sgd", "lion")}, 128, ""),
        (
            {"optimizer": ("sgd", "lion")},
            64,
            "1 block of 64 runs draws 1 of 2 optimizers; --block-size 32 mixes",
        ),
        (
            {"optimizer": get_args(OptimizerName), "batch_size": (16, 32)},
            64,
            "1 block of 64 runs draws 1 of 10 combinations of optimizer and batch size; --block-size 4 mixes",
        ),
        (
            {"batch_size": (8, 16), "group_size": 64},
            64,
            "draws 1 of 2 batch sizes; a larger --num-runs mixes",
        ),
    ],
)
def test_fewer_blocks_than_combinations_are_said(plan: dict[str, Any], num_runs: int, words: str) -> None:
    said = RunPlan(**plan).mixing(num_runs)
    assert (words in said) if words else (said == "")


def test_the_block_size_that_is_suggested_mixes_all() -> None:
    plan = RunPlan(optimizer=get_args(OptimizerName), batch_size=(16, 32), block_size=4)
    assert plan.mixing(64) == ""
    assert len({run.optimizer for run in plan.runs(range(64))}) > 2


def test_a_tasks_own_hyper_parameters_are_uniform_and_independent_of_what_else_there_is() -> None:
    plan = RunPlan(seed=3, hyper={"clip": (0.1, 0.3), "entropy": (0.0, 1.0), "discount": (0.99, 0.99)})
    drawn = [run.hyper for run in plan.runs(range(400))]
    clip, entropy = (np.array([each[name] for each in drawn]) for name in ("clip", "entropy"))
    assert kstest((clip - 0.1) / 0.2, "uniform").pvalue > 0.01
    assert kstest(entropy, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(clip, entropy)[0, 1]) < 0.15  # 3 standard errors of 400 independent pairs
    assert {each["discount"] for each in drawn} == {0.99}
    fewer = replace(plan, hyper={"clip": (0.1, 0.3)}, num_steps=70)
    assert [run.hyper["clip"] for run in fewer.runs(range(5))] == clip[:5].tolist()
    rest = [replace(run, hyper={}) for run in plan.runs(range(9))]
    assert rest == RunPlan(seed=3).runs(range(9)), "other settings are drawn as without"
    variation = plan.variation(plan.runs(range(4, 7)))
    assert variation.hyper["clip"] == tuple(clip[4:7])
    assert variation.is_plain


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"clip": (0.3, 0.1)}, r"hyper clip is \(0.3, 0.1\); expected low <= high"),
        ({"clip": (0.1, float("inf"))}, "expected low <= high, both finite"),
        ({"gamma": (0.1, 0.2)}, "hyper has gamma, which every plan has"),
        ({"seed": (0.1, 0.2)}, "hyper has seed, which every plan has"),
    ],
)
def test_hyper_parameters_that_are_no_ranges_or_taken_are_refused(
    hyper: dict[str, tuple[float, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RunPlan(hyper=hyper)
