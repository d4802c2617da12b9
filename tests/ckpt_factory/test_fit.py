"""ModuleTask: module, data, loss and metrics that do not go together are refused, in a line with the cure."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckpt_factory import ModuleTask, RunPlan, train_stack
from ckpt_factory.tasks import error_rate

PLAN = RunPlan(num_steps=3, batch_size=(16,), num_checkpoints=2)
LABELS = torch.arange(40) % 3
NUMBERS = torch.linspace(-1, 1, 40)
Data = dict[str, tuple[Tensor, Tensor]]


def with_targets(y: Tensor) -> Data:
    x = torch.randn(len(y), 5, generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(("train", "validation", "test"), (x, y))


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def regressor() -> nn.Module:
    return nn.Linear(5, 1)


CROSS_ENTROPIES = [
    F.cross_entropy,
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    functools.partial(F.cross_entropy, label_smoothing=0.1),
]


@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_every_form_of_cross_entropy_has_errors_checked_labels_and_label_noise(loss: Any) -> None:
    task = ModuleTask(classifier, with_targets(LABELS), loss=loss)
    assert task.metrics == ("loss", "error")
    runs = PLAN.runs([0])
    task.sampler(PLAN.order_rngs(runs), 8, RunPlan(label_noise=(0.3, 0.3)).variation(runs))
    for label in (3, -100):
        bad = LABELS.clone()
        bad[25] = label
        with pytest.raises(
            ValueError, match=f"train: label {label} of example 25; the network has 3 outputs"
        ):
            ModuleTask(classifier, with_targets(bad), loss=loss)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_may_be_integers_of_any_size(dtype: torch.dtype) -> None:
    small, plain = (ModuleTask(classifier, with_targets(y)) for y in (LABELS.to(dtype), LABELS))
    runs = PLAN.runs([0, 1])
    assert train_stack(small, PLAN, runs).theta.equal(train_stack(plain, PLAN, runs).theta)


def test_the_error_of_soft_labels_is_that_of_the_most_likely_class() -> None:
    soft = 0.6 * F.one_hot(LABELS, 3) + 0.4 / 3
    task, hard = (ModuleTask(classifier, with_targets(y)) for y in (soft, LABELS))
    assert task.metrics == ("loss", "error")
    theta = task.init(PLAN.init_rngs(PLAN.runs(range(3))))
    assert task.evaluate(theta, "test")["error"].equal(hard.evaluate(theta, "test")["error"])
    runs = PLAN.runs([0])
    for fields in ({"label_noise": (0.3, 0.3)}, {"loss": ("tailr",)}):
        plan = RunPlan(**fields)
        with pytest.raises(ValueError, match="no labels of classes"):
            task.sampler(plan.order_rngs(runs), 8, plan.variation(plan.runs([0])))


def test_errors_of_images_of_labels_are_shares_of_pixels() -> None:
    outputs = torch.tensor([[[3.0, 0.0]], [[1.0, 2.0]]]).unsqueeze(0)  # (1, 2 classes, 1, 2 pixels)
    assert error_rate(outputs, torch.tensor([[[0, 0]]])).item() == 0.5


class Centred(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean(0))


class Moded(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1.0 if self.training else 0.9)


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    """Broadcasts without a word."""
    return (outputs - y).square().mean()


def nothing(outputs: Tensor, y: Tensor) -> None:
    return None


REFUSED: list[tuple[Any, Tensor, dict[str, Any], str]] = [
    (lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), LABELS, {}, "gives (4,) for 4 examples; cross"),
    (lambda: nn.Linear(5, 1), 0 * LABELS, {}, "cross-entropy needs a number for each class"),
    (regressor, NUMBERS, {"loss": F.mse_loss}, "every output with every target, not each with its own"),
    (regressor, NUMBERS, {"loss": squared}, "targets y.view(outputs.shape), or squeeze the outputs"),
    (
        regressor, torch.where(NUMBERS > 0.9, torch.nan, NUMBERS).view(-1, 1), {"loss": F.mse_loss},
        "train: targets that are not finite, the first in example 38",
    ),
    (classifier, LABELS, {"objective": "best"}, "objective is 'best'; expected 'min' or 'max'"),
    (classifier, LABELS, {"metrics": {"a b": F.cross_entropy}}, "a metric is called 'a b'; expected letters"),
    (classifier, LABELS, {"metrics": {"class": F.cross_entropy}}, "a metric is called 'class'"),
    (classifier, LABELS, {"metrics": {"loss": 3}}, "metric 'loss' is 3; expected a function"),
    (
        classifier, LABELS, {"metrics": {"loss": F.cross_entropy, "x": nothing}},
        "metric 'x' is a NoneType; expected one number",
    ),
    (nn.Linear(5, 3), LABELS, {}, "network is a Linear; expected a class or function that makes a fresh"),
    (lambda: 3, LABELS, {}, "network() gives a int; expected a torch.nn.Module"),
    (lambda: Centred(5, 3), LABELS, {}, "Centred gives other outputs for 2 examples alone than among 4"),
    (lambda: Moded(5, 3), LABELS, {}, "Moded gives other outputs in eval mode than in train mode"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "y", "options", "words"), REFUSED, ids=[each[-1] for each in REFUSED])
def test_what_does_not_go_together_is_refused(network: Any, y: Tensor, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        # as users make it: the tests' import hook would refuse wrong types before
        inspect.unwrap(ModuleTask.__init__)(object.__new__(ModuleTask), network, with_targets(y), **options)
    assert "\n" not in str(error.value)


def squeezed(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs.squeeze(1), y)


@pytest.mark.parametrize(
    ("y", "loss"), [(NUMBERS.view(-1, 1), F.mse_loss), (NUMBERS.view(-1, 1), squared), (NUMBERS, squeezed)]
)
def test_a_regression_that_compares_each_with_its_own_is_taken(y: Tensor, loss: Callable) -> None:
    task = ModuleTask(regressor, with_targets(y), loss=loss)
    theta = task.init(PLAN.init_rngs(PLAN.runs([0])))
    net = regressor()
    net.load_state_dict(task.spec.unflatten(theta[0]))
    expected = (net(task.data["test"][0]).flatten() - NUMBERS).square().mean()
    torch.testing.assert_close(task.evaluate(theta, "test")["loss"][0], expected.detach())


def test_a_module_in_eval_mode_stays_in_it() -> None:
    task = ModuleTask(lambda: classifier().eval(), with_targets(LABELS))
    assert not task.net.training
    assert ModuleTask(classifier, with_targets(LABELS)).net.training
