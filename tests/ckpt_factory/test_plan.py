"""RunPlan: what run i is, a pure function of the seed and i."""

import pickle
from typing import Any

import pytest
import torch

from ckpt_factory import RunPlan

RANGES = RunPlan(lr=(1e-3, 1e-1), weight_decay=(1e-6, 1e-2), init_scale=(0.25, 4.0))


def unchecked(**fields: Any) -> RunPlan:
    """A plan as users make it: without the tests' import hook, which would refuse wrong types before."""
    plan = object.__new__(RunPlan)
    vars(plan).update(vars(RunPlan()) | fields)
    plan.__post_init__()
    return plan


def test_a_run_is_a_pure_function_of_seed_and_id() -> None:
    again = pickle.loads(pickle.dumps(RANGES))
    late_first = [again.run(i) for i in reversed(range(20))]
    assert [RANGES.run(i) for i in range(20)] == late_first[::-1]
    assert len({RANGES.run(i).lr for i in range(20)}) == 20
    other = RunPlan(seed=1, lr=RANGES.lr)
    assert other.run(0).lr != RANGES.run(0).lr


def test_a_number_of_checkpoints_or_steps_does_not_change_the_runs() -> None:
    longer = RunPlan(num_steps=900, num_checkpoints=5, lr=RANGES.lr)
    assert longer.run(7).lr == RANGES.run(7).lr


def test_equal_bounds_fix_the_value() -> None:
    fixed = {
        "lr": 0.3,
        "weight_decay": 0.0,
        "init_scale": 2.0,
        "momentum": 0.7,
        "label_noise": 0.1,
        "data_fraction": 0.3,
        "gamma": 0.7,
    }
    plan = RunPlan(loss=("tailr",), **{name: (value, value) for name, value in fixed.items()})
    for name, value in fixed.items():
        assert {getattr(run, name) for run in plan.runs(range(5))} == {value}, name


def test_groups_of_runs_share_their_order_and_no_init() -> None:
    plan = RunPlan(group_size=3)
    runs = [plan.run(i) for i in range(6)]
    assert [run.order_id for run in runs] == [0, 0, 0, 1, 1, 1]
    orders = [torch.rand(4, generator=rng) for rng in plan.order_rngs(runs)]
    assert len(orders) == 2
    assert not torch.equal(*orders)
    inits = {tuple(torch.rand(4, generator=rng).tolist()) for rng in plan.init_rngs(runs)}
    assert len(inits) == 6
    assert not inits & {tuple(order.tolist()) for order in orders}


def test_rngs_of_a_run_do_not_depend_on_who_else_is_in_the_stack() -> None:
    plan = RunPlan()
    runs = [plan.run(i) for i in range(8)]
    for rngs in (plan.init_rngs, plan.order_rngs):
        together = [torch.rand(3, generator=rng) for rng in rngs(runs)]
        alone = torch.rand(3, generator=rngs(runs[5:6])[0])
        assert torch.equal(together[5], alone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": (0.2, 0.1)}, r"lr is \(0.2, 0.1\); expected low <= high"),
        ({"lr": (0.0, 0.1)}, "lr"),
        ({"lr": (-0.1, 0.1)}, "lr"),
        ({"lr": (0.1, float("inf"))}, "lr"),
        ({"lr": (float("nan"), 0.1)}, "lr"),
        ({"weight_decay": (0.0, 0.1)}, "both 0"),
        ({"init_scale": (0.0, 0.0)}, "init_scale"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"batch_size": (0,)}, r"batch_size is \(0,\)"),
        ({"group_size": 0}, "group_size"),
        ({"momentum": (1.0, 1.0)}, r"momentum is \(1.0, 1.0\); expected 0 <= low <= high < 1"),
        ({"momentum": (-0.1, 0.5)}, "momentum"),
        ({"momentum": (0.9, 0.5)}, r"momentum is \(0.9, 0.5\)"),
        ({"momentum": (float("nan"), 0.5)}, "momentum"),
        ({"momentum": 0.9}, "momentum is 0.9; expected two numbers"),
        ({"lr": (0.1, 1e37)}, "lr is .*1e-36 to 1e"),
        ({"init_scale": (1e-320, 1.0)}, "init_scale is .*1e-36 to 1e"),
        ({"lr": (True, True)}, r"lr is \(True, True\); expected two numbers"),
        ({"lr": ("a", "b")}, r"lr is \('a', 'b'\); expected two numbers"),
        ({"gamma": (None, None)}, "gamma is .*; expected two numbers"),
        ({"momentum": (0.5, 0.999999999)}, r"momentum is .*; expected 0 <= low <= high < 1 \(in float32\)"),
        ({"num_steps": 1.5}, "num_steps is 1.5; expected a whole number"),
        ({"num_steps": True}, "num_steps is True; expected a whole number"),
        ({"num_checkpoints": 3.5}, "num_checkpoints is 3.5; expected a whole number"),
        ({"group_size": 2.5}, "group_size is 2.5; expected a whole number"),
        ({"block_size": "64"}, "block_size is '64'; expected a whole number"),
        ({"schedule_every": None}, "schedule_every is None; expected a whole number"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"compile": "no"}, "compile is 'no'; expected True or False"),
        ({"batch_size": (2.5,)}, r"batch_size is \(2.5,\); expected one or more different numbers, whole"),
        ({"batch_size": (True,)}, "batch_size"),
        ({"batch_size": ("32",)}, "batch_size"),
        ({"optimizer": (["sgd"],)}, r"optimizer is \(\['sgd'\],\); expected one or more of sgd"),
        ({"schedule": ["cosine"]}, "schedule"),
        ({"lr": (0.1,)}, r"lr is \(0.1,\); expected two numbers, \(low, high\)"),
        ({"label_noise": (0.0, 1.0)}, r"label_noise is \(0.0, 1.0\); expected 0 <= low <= high < 1"),
        ({"label_noise": (-0.1, 0.1)}, "label_noise"),
        ({"data_fraction": (0.0, 0.5)}, r"data_fraction is \(0.0, 0.5\); expected 0 < low <= high <= 1"),
        ({"data_fraction": (0.5, 1.1)}, "data_fraction"),
        ({"loss": ("tailr",), "gamma": (0.0, 1.0)}, r"gamma is \(0.0, 1.0\); expected 0 <= low <= high < 1"),
        ({"gamma": (0.2, 0.3)}, r"gamma is \(0.2, 0.3\), but loss is \('cross-entropy',\).*tailr"),
        ({"optimizer": ("sdg",)}, r"optimizer is \('sdg',\); expected one or more of sgd, adamw, lion"),
        ({"optimizer": "sgd"}, "optimizer is sgd; expected one or more"),
        ({"optimizer": ()}, r"optimizer is \(\)"),
        ({"optimizer": ("sgd", "lion", "sgd")}, "optimizer"),
        ({"init": ("he",)}, r"init is \('he',\); expected one or more of default, kaiming"),
        ({"init": ("xavier", "xavier")}, "init"),
        ({"loss": ("mse",)}, r"loss is \('mse',\); expected one or more of cross-entropy, tailr"),
        ({"batch_size": 32}, "batch_size is 32; expected one or more different numbers"),
        ({"batch_size": ()}, "batch_size"),
        ({"batch_size": (32, 64, 32)}, "batch_size is .*different"),
        ({"block_size": 0}, "block_size is 0; expected at least 1"),
        ({"schedule_every": 0}, "schedule_every is 0; expected at least 1"),
        (
            {"optimizer": ("sgd", "lion"), "group_size": 6, "block_size": 16},
            "block_size is 16; expected a multiple of group_size 6",
        ),
        ({"batch_size": (8, 16), "group_size": 6, "block_size": 16}, "multiple of group_size 6"),
        ({"schedule": "cosin"}, "schedule is cosin; expected one of cosine, constant, inverse-time"),
        ({"spacing": "logarithmic"}, "spacing is logarithmic; expected one of log, uniform, random, metric"),
        ({"precision": "float16"}, "precision is float16; expected one of float32, bfloat16"),
        ({"seed": -1}, "seed is -1"),
        ({"num_checkpoints": 1}, "num_checkpoints is 1; 450 steps allow 2 to 451"),
        ({"num_steps": 4, "num_checkpoints": 6}, "4 steps allow 2 to 5"),
    ],
)
def test_an_impossible_plan_says_what_is_expected(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unchecked(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"group_size": 6, "block_size": 16},  # of no effect where there is but one kind of run
        {"data_fraction": (1.0, 1.0)},
        {"loss": ("cross-entropy", "tailr"), "gamma": (0.0, 0.99)},
        {"num_steps": 1, "num_checkpoints": 2, "spacing": "random"},
        {"lr": (1e-36, 1e36), "weight_decay": (0.0, 0.0), "label_noise": (0.0, 0.0)},
    ],
)
def test_what_is_possible_is_accepted(fields: dict) -> None:
    plan = RunPlan(**fields)
    assert len(plan.steps(1)) == plan.num_checkpoints
    assert plan.run(5).run_id == 5
