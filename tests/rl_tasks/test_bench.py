"""The benchmark of policies trains what a zoo holds, and counts what it says it does."""

from dataclasses import replace
from itertools import count

import pytest
import torch

from ckpt_factory import RunPlan, make, train_stack
from ckpt_factory.bench.contenders import FactoryStack
from rl_tasks import bench
from rl_tasks.tasks import PolicyTask

PLAN = RunPlan(
    num_steps=16,
    batch_size=(32,),
    optimizer=("adamw",),
    lr=(0.1, 0.1),
    weight_decay=(0.0, 0.0),
    hyper={"max_grad_norm": (0.01, 0.01)},
    num_checkpoints=2,
)


@pytest.fixture(scope="module")
def task() -> PolicyTask:
    found = make("rl_tasks:cartpole-v0?copies=4&episodes=4&max_steps=60&rollout=16")
    assert isinstance(found, PolicyTask)
    return found


def test_a_benchmark_trains_the_policies_of_a_zoo(task: PolicyTask) -> None:
    """Gradients are clipped to a hundredth here, so that leaving that out would show."""
    runs = PLAN.runs(range(3))
    stack = FactoryStack(task, PLAN, runs)
    stack.advance(PLAN.num_steps)
    assert torch.equal(stack.theta(), train_stack(task, PLAN, runs).theta[:, -1])


def test_a_price_is_divided_among_the_good_policies(
    task: PolicyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "GOOD_RETURN", 1.0)  # all are, at the first look
    with monkeypatch.context() as patched:
        patched.setattr(bench, "process_time", count(10.0, 2.0).__next__)  # 2 s from one look to the next
        assert bench._our_cpu_s(task, PLAN, range(4)) == 2.0 / 4
    monkeypatch.setattr(bench, "GOOD_RETURN", 1e6)
    assert bench._our_cpu_s(task, replace(PLAN, num_steps=8), range(4)) == float("inf")
