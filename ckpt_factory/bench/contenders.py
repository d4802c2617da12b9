"""Who is compared: the plain loop that one would write first, torch.func.vmap, and the factory's own stack.

All train the runs of a plan, from the same initialisations on the same mini-batches, and are handled alike:
`advance` by optimizer steps, `evaluate` on a split, take a snapshot `theta`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from ..plan import RunPlan, RunSettings
from ..tasks.base import Task
from ..train import initial_networks, stack_optimizer


class Contender(ABC):
    """A way to train runs; those of a plan whose hyper-parameters are the same for all."""

    def __init__(self, task: Task, plan: RunPlan, runs: Sequence[RunSettings], *, chunk: int = 1000):
        """`chunk`: images per forward pass of an evaluation, where the task does not decide that itself."""
        self.task, self.plan, self.runs, self.chunk = task, plan, runs, chunk
        self.held: dict[str, tuple[Tensor, Tensor]] = {}
        scale = torch.tensor([run.init_scale for run in runs])
        self.start = initial_networks(task, plan, runs) * scale.unsqueeze(1)

    @abstractmethod
    def advance(self, steps: int) -> None:
        """Train every run by so many steps."""

    @abstractmethod
    def evaluate(self, split: str) -> dict[str, Float[Tensor, " K"]]:
        """Mean cross-entropy "loss" and "error" of every run's network on all of a split."""

    @abstractmethod
    def theta(self) -> Float[Tensor, "K D"]:
        """A snapshot of every run's network."""

    def chunks(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of a split, which are normalised once and held."""
        if split not in self.held:
            self.held[split] = self.task.examples(split)
        x, labels = self.held[split]
        return zip(x.split(self.chunk), labels.split(self.chunk), strict=True)

    def lr_at(self, step: int) -> float:
        """The plan's schedule, begun again at its end: a benchmark has no last step."""
        return self.plan.lr_at(step % self.plan.num_steps)


class PlainLoop(Contender):
    """One nn.Module after the other: normalised images in memory, autograd, torch.optim.SGD."""

    def __init__(self, task: Task, plan: RunPlan, runs: Sequence[RunSettings], *, chunk: int = 1000):
        super().__init__(task, plan, runs, chunk=chunk)
        self.nets = [task.module() for _ in runs]
        for net, theta in zip(self.nets, self.start, strict=True):
            net.load_state_dict(task.spec.unflatten(theta))
        self.params = [dict(net.named_parameters()) for net in self.nets]
        self.batches = [task.sampler(plan.order_rngs([run]), run.batch_size) for run in runs]
        self.optimizers = [
            _sgd(list(net.parameters()), run) for net, run in zip(self.nets, runs, strict=True)
        ]
        self.step = 0

    def advance(self, steps: int) -> None:
        each = zip(self.nets, self.params, self.batches, self.optimizers, self.runs, strict=True)
        for net, params, next_batch, optimizer, run in each:
            for step in range(self.step, self.step + steps):
                batch = next_batch(params)
                optimizer.param_groups[0]["lr"] = run.lr * self.lr_at(step)
                optimizer.zero_grad()
                cross_entropy(net(batch.x[0]), batch.y[0]).backward()
                optimizer.step()
        self.step += steps

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, Tensor]:
        losses, errors = [], []
        for net in self.nets:
            loss = error = count = 0.0
            for images, y in self.chunks(split):
                logits = net(images)
                loss += float(cross_entropy(logits, y, reduction="sum"))
                error += float((logits.argmax(1) != y).sum())
                count += len(y)
            losses.append(loss / count)
            errors.append(error / count)
        return {"loss": torch.tensor(losses), "error": torch.tensor(errors)}

    @torch.no_grad()
    def theta(self) -> Tensor:
        return torch.stack([torch.cat([p.flatten() for p in params.values()]) for params in self.params])


class VmapStack(Contender):
    """torch.func over a stack: grad of one network's loss, vmapped over a group's runs and over groups."""

    def __init__(self, task: Task, plan: RunPlan, runs: Sequence[RunSettings], *, chunk: int = 1000):
        super().__init__(task, plan, runs, chunk=chunk)
        net = task.module()
        self.params = {name: value.clone() for name, value in task.spec.unflatten(self.start).items()}
        self.next_batch = task.sampler(plan.order_rngs(runs), runs[0].batch_size)
        self.optimizer = _sgd(list(self.params.values()), runs[0])
        self.group_size, self.step = plan.group_size, 0

        def loss(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(functional_call(net, dict(params), (x,)), y)

        def sums(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = functional_call(net, dict(params), (x,))
            return cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) != y).sum()

        of_group = vmap(grad(loss), in_dims=(0, None, None))  # its runs share their images
        self.gradients = vmap(grad(loss)) if self.group_size == 1 else vmap(of_group)
        self.sums = vmap(sums, in_dims=(0, None, None))

    def advance(self, steps: int) -> None:
        for step in range(self.step, self.step + steps):
            x, y, _ = self.next_batch(self.params)
            if self.group_size == 1:
                found = self.gradients(self.params, x, y)
            else:
                grouped = {n: p.unflatten(0, (-1, self.group_size)) for n, p in self.params.items()}
                found = {n: g.flatten(0, 1) for n, g in self.gradients(grouped, x, y).items()}
            for name, gradient in found.items():
                self.params[name].grad = gradient
            self.optimizer.param_groups[0]["lr"] = self.runs[0].lr * self.lr_at(step)
            self.optimizer.step()
        self.step += steps

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, Tensor]:
        loss, error, count = torch.zeros(len(self.runs)), torch.zeros(len(self.runs)), 0
        for images, y in self.chunks(split):
            losses, errors = self.sums(self.params, images, y)
            loss += losses
            error += errors
            count += len(y)
        return {"loss": loss / count, "error": error / count}

    def theta(self) -> Tensor:
        return self.task.spec.flatten(self.params)


class FactoryStack(Contender):
    """The pieces of `train_stack`, in its order, so that each can be timed; a test holds both together."""

    def __init__(self, task: Task, plan: RunPlan, runs: Sequence[RunSettings], *, chunk: int = 1000):
        super().__init__(task.with_products(plan.precision, compile=plan.compile), plan, runs, chunk=chunk)

        unflat = self.task.spec.unflatten(self.start)
        self.params = {name: value.clone() for name, value in unflat.items()}
        batch_size, variation = runs[0].batch_size, plan.variation(runs)
        self.next_batch = self.task.sampler(plan.order_rngs(runs), batch_size, variation)
        self.optimizer, self.step = stack_optimizer(plan, runs, self.params), 0
        self.peak_lr = self.optimizer.param_groups[0]["lr"]

    def advance(self, steps: int) -> None:
        for step in range(self.step, self.step + steps):
            for name, gradient in self.task.direction(self.params, self.next_batch(self.params)).items():
                self.params[name].grad = gradient
            self.optimizer.param_groups[0]["lr"] = self.peak_lr * self.lr_at(step)
            self.optimizer.step()
        self.step += steps

    def evaluate(self, split: str) -> dict[str, Tensor]:
        return self.task.evaluate(self.theta(), split)

    def theta(self) -> Tensor:
        return self.task.spec.flatten(self.params)


def check_same_networks(plain: Contender, other: Contender, *, steps: int, tolerance: float) -> float:
    """Train both by some steps and compare their networks: a comparison of speed is one of equal work.

    Returns:
        The distance of the other's networks, and of their losses on the validation split, from the plain
        ones, as a share of how far these have moved, whichever is larger.

    Raises:
        ValueError: it is more than the tolerance.
    """
    before = plain.evaluate("validation")["loss"]
    for contender in (plain, other):
        contender.advance(steps)
    theta, loss = plain.theta(), plain.evaluate("validation")["loss"]
    moved = float((theta - plain.start).norm()), float((loss - before).norm())
    apart = (
        float((other.theta() - theta).norm()),
        float((other.evaluate("validation")["loss"] - loss).norm()),
    )
    difference = max(a / m for a, m in zip(apart, moved, strict=True))
    if not difference <= tolerance:
        raise ValueError(
            f"{type(other).__name__} trains other networks of {plain.task.id} than the plain loop: "
            f"after {steps} steps they differ by {difference:.3g} of the way, more than {tolerance:g}"
        )
    return difference


def _sgd(params: list[nn.Parameter] | list[Tensor], run: RunSettings) -> torch.optim.SGD:
    return torch.optim.SGD(
        params, lr=run.lr, momentum=run.momentum, weight_decay=run.weight_decay, nesterov=True
    )
