"""Compiled and eager are the same arithmetic: half a minute of compiling, so `slow`."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ckpt_factory import MLP, ParamSpec, RunPlan, make, stacked, train_stack

PLAN = RunPlan(
    num_steps=20,
    num_checkpoints=4,
    batch_size=(16,),
    group_size=2,
    loss=("cross-entropy", "tailr"),
    gamma=(0.2, 0.8),
)
# Fused sums in another order; in bfloat16, here and there a sum is rounded (by 2^-8) to the other side.
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 1e-3}}


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["functions", "training"])
def test_compiled_equals_eager(claim: str) -> None:
    """In a process of its own: the import hook of the tests checks every call, which cannot be compiled."""
    command = [sys.executable, "-m", "tests.ckpt_factory.test_compiled", claim]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def compare_functions() -> None:
    """Gradients with and without gamma, and metrics, in both precisions."""
    rng = torch.Generator().manual_seed(0)
    spec = ParamSpec.of_module(MLP((64, 16, 10)))
    theta = 0.2 * torch.randn(6, spec.D, generator=rng)
    params = [value.contiguous() for value in spec.unflatten(theta).values()]
    x = torch.randn(2, 32, 64, generator=rng)
    labels = torch.randint(0, 10, (2, 32), generator=rng)

    def both(function: Callable, *args: object) -> tuple[list[Tensor], list[Tensor]]:
        return list(stacked.compiled(function)(*args)), list(function(*args))

    for dtype, tolerance in TOLERANCE.items():
        for gamma in (None, torch.linspace(0, 0.9, 6)):
            fused, eager = both(stacked.gradients, params, x, labels, gamma, dtype)
            torch.testing.assert_close(fused, eager, **tolerance)
        fused, eager = both(stacked.metrics, params, x[:1], labels[0], dtype)
        torch.testing.assert_close(fused[0], eager[0], **tolerance)
        assert torch.equal(fused[1], eager[1])
    assert stacked.compiled(stacked.gradients) is stacked.compiled(stacked.gradients), "compiled once"


def compare_trainings() -> None:
    """The whole inner loop, of runs with both losses."""
    task = make("digits-mlp-v0")
    runs = PLAN.runs(range(4))
    assert {run.loss for run in runs} == {"cross-entropy", "tailr"}
    fused, eager = (train_stack(task, replace(PLAN, compile=on), runs) for on in (True, False))
    # float32 rounding, amplified along 20 steps; an update moves parameters by 1e-2
    torch.testing.assert_close(fused.theta, eager.theta, rtol=1e-3, atol=2e-4)
    for name, values in eager.metrics.items():
        torch.testing.assert_close(fused.metrics[name], values, rtol=1e-3, atol=5e-3)


if __name__ == "__main__":
    {"functions": compare_functions, "training": compare_trainings}[sys.argv[1]]()
