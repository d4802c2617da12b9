"""The inner loop follows its device: on a real GPU where there is one, and on torch's fake one everywhere."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ckpt_factory import RunPlan, train_stack
from ckpt_factory.optim import OPTIMIZERS, stack
from ckpt_factory.stacked import gradients, metrics
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.train import stack_optimizer

RUNS, GROUPS, BATCH = 4, 2, 8
SHAPES = [(RUNS, 5, 6), (RUNS, 5), (RUNS, 3, 5), (RUNS, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_gamma", [False, True])
def test_losses_and_gradients_stay_on_the_device(dtype: torch.dtype, with_gamma: bool) -> None:
    """torch's fake tensors refuse operands on different devices, without a GPU."""
    with FakeTensorMode():
        params: list[Tensor] = [torch.empty(shape, device="cuda") for shape in SHAPES]
        x = torch.empty(GROUPS, BATCH, 6, device="cuda")
        labels = torch.empty(GROUPS, BATCH, dtype=torch.int64, device="cuda")
        gamma = torch.empty(RUNS, device="cuda") if with_gamma else None
        found = [*gradients(params, x, labels, gamma, dtype), *metrics(params, x[:1], labels[0], dtype)]
    assert {each.device.type for each in found} == {"cuda"}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizers_keep_their_state_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "_check_values", lambda *_: None)  # fake tensors have none
    plan = RunPlan(optimizer=(name,), lr=(0.05, 0.1), weight_decay=(1e-4, 1e-3))  # pyright: ignore
    with FakeTensorMode():
        params = {str(i): torch.empty(shape, device="cuda") for i, shape in enumerate(SHAPES)}
        optimizer = stack_optimizer(plan, plan.runs(range(RUNS)), params)
        for step in range(2):
            for value in params.values():
                value.grad = torch.empty_like(value)
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * plan.lr_at(step)
            optimizer.step()
        states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert states
    assert {each.device.type for each in [*states, *params.values()]} == {"cuda"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_gpu_makes_the_runs_of_the_cpu(digits: MLPClassifier, name: str) -> None:
    plan = RunPlan(num_steps=20, num_checkpoints=5, optimizer=(name,))  # pyright: ignore[reportArgumentType]
    cpu, gpu = (train_stack(digits, plan, plan.runs(range(8)), device=device) for device in ("cpu", "cuda"))
    # sums in another order, grown by 20 steps; signs of Lion's and Tiger's updates may tip over
    loose = name in ("lion", "tiger")
    torch.testing.assert_close(gpu.theta, cpu.theta, rtol=0, atol=2e-2 if loose else 1e-3)
    for column, values in cpu.metrics.items():
        torch.testing.assert_close(gpu.metrics[column], values, rtol=0, atol=2e-2)
