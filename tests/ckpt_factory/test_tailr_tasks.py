"""TaiLr where autograd differentiates: convolutions and own modules, run by run, equal to the fast path."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ckpt_factory import MLP, ModuleTask, RunPlan, RunSettings, Task, train_stack
from ckpt_factory.tasks import ConvClassifier, ImageData, MLPClassifier
from ckpt_factory.train import check_plan
from tests.conftest import unchecked

MIXED = RunPlan(
    seed=2,
    num_steps=20,
    batch_size=(32,),
    num_checkpoints=3,
    group_size=2,
    loss=("cross-entropy", "tailr"),
    gamma=(0.2, 0.8),
)
SPLITS = ("train", "validation", "test")


def digits_mlp() -> nn.Module:
    return unchecked(MLP)((64, 16, 10))


def unmixed(run: RunSettings) -> RunSettings:
    return replace(run, loss="cross-entropy", gamma=0.0)


@pytest.mark.parametrize("looped", [False, True])
def test_own_modules_train_as_the_fast_path(
    digits: MLPClassifier, looped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ModuleTask(
        digits_mlp, {s: (digits._normalise(digits.images[s]), digits.labels[s]) for s in SPLITS}
    )
    monkeypatch.setattr(task, "init", digits.init)
    monkeypatch.setattr(task, "_looped", lambda device: looped)
    runs = MIXED.runs(range(8))
    assert {run.loss for run in runs} == {"cross-entropy", "tailr"}
    check_plan(task, MIXED)
    ours, theirs = train_stack(task, MIXED, runs), train_stack(digits, MIXED, runs)
    # float32 sums in another order, over 20 steps of momentum
    torch.testing.assert_close(ours.theta, theirs.theta, rtol=1e-3, atol=1e-4)
    without = train_stack(task, MIXED, [unmixed(run) for run in runs])
    for k, run in enumerate(runs):
        moved = (without.theta[k, -1] - ours.theta[k, -1]).abs().max()
        assert moved > 1e-2 if run.gamma else moved < 1e-4, "only TaiLr's runs move otherwise"


def test_runs_without_tailr_keep_a_loss_with_options(digits: MLPClassifier) -> None:
    data = {s: (digits._normalise(digits.images[s]), digits.labels[s]) for s in SPLITS}
    loss = functools.partial(F.cross_entropy, label_smoothing=0.2)
    task = ModuleTask(digits_mlp, data, loss=loss)
    runs = MIXED.runs(range(8))
    mixed = train_stack(task, MIXED, runs).theta
    for k, run in enumerate(runs):
        if run.loss == "cross-entropy":
            group = [unmixed(each) for each in runs[k - k % 2 : k - k % 2 + 2]]
            alone = train_stack(task, MIXED, group).theta[k % 2]
            # float32 sums in another order, over 20 steps of momentum
            torch.testing.assert_close(mixed[k], alone, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def convolutional() -> ConvClassifier:
    rng = np.random.default_rng(0)
    data = ImageData(
        images={split: rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8) for split in SPLITS},
        labels={split: rng.integers(0, 3, 40) for split in SPLITS},
        full_scale=255.0,
        mean=0.5,
        std=0.3,
        num_classes=3,
    )
    task = ConvClassifier(data, augment=False)
    task.id = "images-cnn-v0"
    return task


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_follow_the_gradient_of_each_runs_tailr(
    convolutional: ConvClassifier, precision: str
) -> None:
    task: Task = convolutional.with_products(precision)
    runs = MIXED.runs(range(4))
    assert {run.loss for run in runs} == {"cross-entropy", "tailr"}
    theta = 2 * task.init(MIXED.init_rngs(runs))
    params = task.spec.unflatten(theta)
    batch = task.sampler(MIXED.order_rngs(runs), 40, MIXED.variation(runs))(params)
    losses, gradients = task.loss(theta, batch), task.gradients(params, batch)
    for k, run in enumerate(runs):
        net = convolutional.module()
        net.load_state_dict(task.spec.unflatten(theta[k]))
        p = net(batch.x[k // 2]).softmax(1)[torch.arange(40), batch.y[k // 2]]
        loss = (-(run.gamma + (1 - run.gamma) * p).log() / (1 - run.gamma)).mean()
        loss.backward()
        torch.testing.assert_close(losses[k], loss.detach(), rtol=1e-4, atol=1e-6)  # float32 sums in parts
        for name, value in net.named_parameters():
            assert value.grad is not None
            # float32 sums in parts; of bfloat16, half a percent for each rounding, in sums over 40 images of
            # noise that cancel to a tenth of their terms
            tolerance = 1e-4 if precision == "float32" else 0.15
            assert (gradients[name][k] - value.grad).norm() < tolerance * value.grad.norm()
