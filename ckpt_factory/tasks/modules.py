"""ModuleTask: a user's nn.Module, data and metrics as a task, through torch.func."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..derive import derive_symmetry
from ..losses import relative_error, tailr_of_network
from ..spec import ParamSpec
from .base import Batch, Sampler, Task, Variation
from .fit import (
    Metric,
    check_fit,
    check_labels,
    check_losses,
    check_measures,
    check_module,
    error_rate,
    is_cross_entropy,
    one_line,
    tensors_of,
)
from .loops import stacked_gradients, stacked_loss, stacked_outputs
from .orders import labelled_batches, mini_batches, tailr_gamma

logger = logging.getLogger(__name__)

EVALUATION_BLOCK = 256
"""Examples per forward pass when networks are evaluated; few for convolutions, which leave the cache else."""
OUTPUT_NUMBERS = 2**24
"""Outputs of so many numbers, 64 MB, are held at once when a stack is evaluated."""
CONVOLUTIONS = nn.modules.conv._ConvNd


class ModuleTask(Task):
    """The task of training a user's module.

    Stacks go through torch.func.vmap, or network by network where vmap cannot or, as with convolutions on a
    CPU, does not pay. The symmetry is derived from the module (`derive_symmetry`); what stands against it is
    logged and kept in `notes`. Register it in the module that its id names:
    `register("name-v0", entry_point, load=load)` with `load(data_root)` giving the data and
    `entry_point(data)` a ModuleTask, both found as "module:name-v0" by every process.
    """

    answers_examples = True

    def __init__(
        self,
        network: Callable[[], nn.Module],
        data: Any,
        *,
        loss: Metric = F.cross_entropy,
        metrics: Mapping[str, Metric] | None = None,
        metric: str = "loss",
        objective: Literal["min", "max"] = "min",
        inputs: str = "",
    ):
        """
        Args:
            network: makes a fresh module, initialised from torch's global generator; a class or a function of
                a module, for it has to pickle.
            data: {"train": ..., "validation": ..., "test": ...}, each tensors (x, y) of N examples or a
                torch Dataset of pairs.
            loss: (outputs, y) -> the mean over the examples, differentiable.
            metrics: by name, functions of outputs and y of a whole split; default the loss as "loss" and, if
                it is cross-entropy, "error".
            metric: which of them prompts are about.
            objective: whether a good one is small or large.
            inputs: how x is made from raw data, for the zoo's card.

        Raises:
            ValueError: a module with state besides its parameters, or that data and module do not fit; the
                message says what to do.
        """
        classifies = is_cross_entropy(loss)
        default = {"loss": loss, "error": error_rate} if classifies else {"loss": loss}
        self.measures = dict(default if metrics is None else metrics)
        check_measures(network, self.measures, metric, objective)
        self.network, self.criterion, self.inputs = network, loss, inputs
        self.metrics, self.metric, self.objective = tuple(self.measures), metric, objective
        self.data = tensors_of(data)
        with _own_generator(0):
            self.net = network()
        check_module(self.net)
        self.spec = ParamSpec.of_module(self.net)
        x = self.data["train"][0]
        outputs = check_fit(self.net, x[:4])
        self.num_classes = 0
        if classifies:
            self.data, self.num_classes = check_labels(type(self.net).__name__, outputs, self.data)
        if not self.num_classes:  # then the loss is what the task was made with
            self.unused = ("label_noise", "gamma", *(() if classifies else ("loss",)))
        check_losses(loss, self.measures, outputs, self.data["train"][1][: len(outputs)])
        self.outputs_per_example = max(1, outputs[0].numel())
        self.symmetry, reasons = derive_symmetry(self.net, x[:4])
        about = f"the symmetry of {type(self.net).__name__}"
        self.notes = tuple(f"{about} leaves hidden units out: {reason}" for reason in reasons)
        for note in self.notes:
            logger.warning(note)
        self.has_convolutions = any(isinstance(each, CONVOLUTIONS) for each in self.net.modules())
        self.can_stack = self._try_stacking()

    def init(self, rngs: Sequence[torch.Generator]) -> Float[Tensor, "K D"]:
        """What `network()` gives with torch's global generator seeded from each run's own, then put back."""
        rows = []
        for rng in rngs:
            with _own_generator(int(torch.randint(2**62, (), generator=rng))):
                rows.append(self.spec.flatten(dict(self.network().named_parameters())).detach())
        return torch.stack(rows)

    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        """Batches; label noise and TaiLr are for labels of classes: cross-entropy and integers."""
        x, y = self.data["train"]
        gamma = tailr_gamma(variation)
        if gamma is not None and not self.num_classes:
            raise ValueError(
                "this task has no labels of classes (cross-entropy, one integer an example), which the loss "
                "tailr is for; leave it out"
            )
        if self.num_classes:
            batches = labelled_batches(y, self.num_classes, rngs, batch_size, variation)
        elif variation is not None and any(variation.label_noise):
            raise ValueError(
                "this task has no labels of classes that could be wrong (cross-entropy, one integer an "
                "example); leave out label_noise"
            )
        else:
            fractions = variation.data_fraction if variation else None
            batches = ((i, y[i]) for i in mini_batches(rngs, len(x), batch_size, fractions))

        def next_batch(params: Mapping[str, Tensor]) -> Batch:
            (index, targets), device = next(batches), next(iter(params.values())).device
            on_device = gamma.to(device) if gamma is not None else None
            return Batch(x[index].to(device), targets.to(device), on_device)

        return next_batch

    def module(self) -> nn.Module:
        return self.network()

    def examples(self, split: str, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, y = self.data[split]
        return (x, y) if index is None else (x[index], y[index])

    def outputs(self, theta: Float[Tensor, "K D"], x: Tensor) -> Tensor:
        return stacked_outputs(self.net, self.spec.unflatten(theta), x, looped=self._looped(theta.device))

    def apart(self, outputs: Tensor, goal: Tensor) -> Float[Tensor, " K"]:
        """Of answers that are no logits of classes, the squared error as a share of their variance."""
        return super().apart(outputs, goal) if self.num_classes else relative_error(outputs, goal)

    def loss(self, theta: Float[Tensor, "K D"], batch: Batch) -> Float[Tensor, " K"]:
        return stacked_loss(self._loss, self.spec.unflatten(theta), *batch, looped=self._looped(theta.device))

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return stacked_gradients(self._loss, params, *batch, looped=self._looped(batch.x.device))

    @torch.no_grad()
    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        """Metrics are functions of the outputs of a whole split, so that they need not be means."""
        x, y = (each.to(theta.device) for each in self.data[split])
        found: dict[str, list[Tensor]] = {name: [] for name in self.metrics}
        runs_at_once = max(1, OUTPUT_NUMBERS // (len(x) * self.outputs_per_example))
        for networks in theta.split(runs_at_once):
            blocks = [self.outputs(networks, block) for block in x.split(EVALUATION_BLOCK)]
            for outputs in torch.cat(blocks, 1):
                for name, measure in self.measures.items():
                    found[name].append(torch.as_tensor(measure(outputs, y), dtype=torch.float32))
        return {name: torch.stack(values).to(theta.device) for name, values in found.items()}

    def _loss(self, params: dict[str, Tensor], x: Tensor, y: Tensor, gamma: Tensor | None = None) -> Tensor:
        """The task's own loss, or TaiLr where its gamma is not 0."""
        outputs = self._forward(params, x)
        own = self.criterion(outputs, y)
        return own if gamma is None else torch.where(gamma == 0, own, tailr_of_network(outputs, y, gamma))

    def _forward(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.net, params, (x,))

    def _looped(self, device: torch.device) -> bool:
        return not self.can_stack or (self.has_convolutions and device.type == "cpu")

    def _try_stacking(self) -> bool:
        """Whether vmap knows all that module and loss do, and gives the same."""
        theta = self.init([torch.Generator().manual_seed(k) for k in range(2)])
        x, y = (each[:4].unsqueeze(0) for each in self.data["train"])
        params = self.spec.unflatten(theta)
        alone = stacked_gradients(self._loss, params, x, y, looped=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # vmap warns where it would be slow
                together = stacked_gradients(self._loss, params, x, y, looped=False)
                with torch.no_grad():
                    vmap(self._forward, in_dims=(0, None))(params, x[0])  # other kernels than with gradients
            # float32 sums in another order
            why = (
                "" if all(torch.allclose(together[n], alone[n], 1e-3, 1e-5) for n in alone) else "it differs"
            )
        except Exception as error:  # whatever torch.func does not know
            why = one_line(error)
        if why:
            logger.warning("%s is trained network by network, not stacked: %s", type(self.net).__name__, why)
        return not why


@contextlib.contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """torch's global CPU generator, seeded inside and put back after; nn.Modules know no other."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
