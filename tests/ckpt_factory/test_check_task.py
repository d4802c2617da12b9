"""check_task: passes for every task of the package, and names the clause that a broken task breaks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ckpt_factory import Symmetry, Task, check_task, make, registry
from ckpt_factory.tasks import ImageData, MLPClassifier, Quadratic
from ckpt_factory.tasks.base import Batch, Sampler, Variation


def test_the_contract_holds_for_digits(digits: Task) -> None:
    check_task(digits)


def test_the_contract_holds_for_quadratic() -> None:
    check_task(make("quadratic-v0"))


def test_the_contract_holds_for_mnist(data_root: Path) -> None:
    check_task(make("mnist-mlp-v0", data_root=data_root))


class WrongGradient(MLPClassifier):
    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        gradients = super().gradients(params, batch)
        gradients["fc2.bias"] = gradients["fc2.bias"] * 1.01
        return gradients


class SummedGradient(MLPClassifier):
    """Right for one run, wrong for a stack: every run gets the mean gradient of all."""

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        loss = super().loss(theta, batch)
        return loss.mean().expand(len(theta))

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return Task.gradients(self, params, batch)


class InterleavedGroups(MLPClassifier):
    """Run k learns from the batch of group k % G instead of k // (K / G)."""

    def _interleaved(self, batch: Batch, num_runs: int) -> Batch:
        group = torch.arange(num_runs) % len(batch.x)
        return Batch(batch.x[group], batch.y[group])

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        return super().loss(theta, self._interleaved(batch, len(theta)))

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return super().gradients(params, self._interleaved(batch, len(params["fc1.bias"])))


class WrongGroupedGradient(MLPClassifier):
    """Its own gradient is right only where every run has a batch to itself."""

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        gradients = super().gradients(params, batch)
        if 1 < len(batch.x) < len(params["fc1.bias"]):
            gradients["fc1.weight"] = gradients["fc1.weight"].flip(0)
        return gradients


class NotInvariant(MLPClassifier):
    def evaluate(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        metrics = super().evaluate(theta, split)
        return metrics | {"error": metrics["error"] + theta[:, 0].abs()}


class WrongSymmetry(MLPClassifier):
    def __init__(self, data: ImageData, sizes: tuple[int, ...]):
        super().__init__(data, sizes)
        axes = dict(self.symmetry.axes_to_perm) | {"fc1.bias": (None,)}
        self.symmetry = Symmetry(self.spec, axes)


class InitFromFirstGenerator(MLPClassifier):
    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        return torch.rand(len(rngs), self.spec.D, generator=rngs[0]) - 0.5


class InitCentredOverRuns(MLPClassifier):
    """Depends on the other runs of the stack, whatever their order."""

    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        theta = super().init(rngs)
        return theta - theta.amax(0)


class InitFromGlobalGenerator(MLPClassifier):
    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        return torch.rand(len(rngs), self.spec.D)


class StatefulBatches(MLPClassifier):
    """Every batch is the same for all groups: the generators are not used."""

    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        same = [torch.Generator().manual_seed(len(rngs)) for _ in rngs]
        return super().sampler(same, batch_size, variation)


class OtherMetrics(MLPClassifier):
    def evaluate(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        return {"loss": super().evaluate(theta, split)["loss"]}


class MetricNobodyMeasures(MLPClassifier):
    metric = "accuracy"


class MetricsOverTheStack(MLPClassifier):
    def evaluate(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        return {k: v - v.mean() for k, v in super().evaluate(theta, split).items()}


class AnswersOfTheFirst(MLPClassifier):
    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        return super().outputs(theta[:1].expand_as(theta), x)


class AnswersAsImagesStand(MLPClassifier):
    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        return super().outputs(theta, x).transpose(1, 2)


class AnswersOfAnotherScale(MLPClassifier):
    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        return 2 * super().outputs(theta, x)


class Unpicklable(MLPClassifier):
    def __init__(self, data: ImageData, sizes: tuple[int, ...]):
        super().__init__(data, sizes)
        self.hook: Any = lambda x: x


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (WrongGradient, "gradients is the gradient of loss"),
        (SummedGradient, "loss of run 0 alone"),
        (InterleavedGroups, "runs of one group share its batch"),
        (WrongGroupedGradient, "gradients is the gradient of loss"),
        (NotInvariant, "validation error under the task's symmetry"),
        (WrongSymmetry, "validation loss under the task's symmetry"),
        (InitFromFirstGenerator, r"run k of init depends on rngs\[k\] alone"),
        (InitCentredOverRuns, r"run k of init depends on rngs\[k\] alone"),
        (InitFromGlobalGenerator, r"run k of init depends on rngs\[k\] alone"),
        (StatefulBatches, "loss of run 0 alone"),
        (OtherMetrics, "evaluate gives"),
        (MetricNobodyMeasures, "metric 'accuracy' is one of"),
        (MetricsOverTheStack, "validation loss of single runs"),
        (AnswersOfTheFirst, "outputs of single runs"),
        (AnswersOfAnotherScale, "outputs of the plain module"),
        (AnswersAsImagesStand, r"outputs are \(K, B, ...\), got \(4, 10, 8\)"),
        (Unpicklable, "the task pickles: .*functions and classes of a module, no lambdas"),
    ],
)
def test_a_broken_task_is_found_and_the_clause_named(digits: Task, broken: type, clause: str) -> None:
    task = broken(digits.data, (64, 6, 10))
    task.id = "digits-mlp-v0"
    with pytest.raises(AssertionError, match=f"broken contract: .*{clause}"):
        check_task(task)


def test_a_task_that_only_this_process_knows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic trap: registered in the driver, unknown on the worker."""
    monkeypatch.setitem(registry, "local-v0", registry["quadratic-v0"])
    task = Quadratic()
    task.id = "local-v0"
    with pytest.raises(AssertionError, match=r"'local-v0' resolves in a fresh process: .*unknown task"):
        check_task(task)
