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
from torch.nn.parameter import UninitializedParameter
from torch.utils.data import Dataset, default_collate

from ..derive import derive_symmetry
from ..spec import ParamSpec
from .base import Batch, Sampler, Task, Variation
from .loops import stacked_gradients, stacked_loss
from .orders import labelled_batches, mini_batches, refuse_tailr

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
EVALUATION_BLOCK = 256
"""Examples per forward pass when networks are evaluated; few for convolutions, which leave the cache else."""
OUTPUT_NUMBERS = 2**24
"""Outputs of so many numbers, 64 MB, are held at once when a stack is evaluated."""
CONVOLUTIONS = nn.modules.conv._ConvNd
RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)
BATCH_NORMS = nn.modules.batchnorm._BatchNorm

Metric = Callable[[Tensor, Tensor], Tensor]
"""(outputs (N, ...), targets (N, ...)) of a whole split -> a scalar."""


def error_rate(outputs: Float[Tensor, "N C"], targets: Tensor) -> Tensor:
    """Share of examples whose own class does not beat all others; neither NaN nor a tie does."""
    right = outputs.gather(1, targets.unsqueeze(1))
    return ((outputs >= right).sum(1) != 1).float().mean()


class ModuleTask(Task):
    """The task of training a user's module.

    Stacks go through torch.func.vmap, or network by network where vmap cannot or, as with convolutions on a
    CPU, does not pay. The symmetry is derived from the module (`derive_symmetry`); what stands against it is
    logged and kept in `notes`. Register it in the module that its id names:
    `register("name-v0", entry_point, load=load)` with `load(data_root)` giving the data and
    `entry_point(data)` a ModuleTask, both found as "module:name-v0" by every process.
    """

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
        default = {"loss": loss, "error": error_rate} if loss is F.cross_entropy else {"loss": loss}
        self.measures = dict(metrics or default)
        self.network, self.criterion, self.inputs = network, loss, inputs
        self.metrics, self.metric, self.objective = tuple(self.measures), metric, objective
        if metric not in self.measures:
            raise ValueError(f"metric is {metric!r}; expected one of {', '.join(self.measures)}")
        self.data = _as_tensors(data)
        with _own_generator(0):
            self.net = network()
        check_module(self.net)
        self.spec = ParamSpec.of_module(self.net)
        x = self.data["train"][0]
        self._check_fit(x[:4])
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
        """Batches; `label_noise` is for labels of classes: cross-entropy and one integer an example."""
        refuse_tailr(self, variation)
        x, y = self.data["train"]
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
            return Batch(x[index].to(device), targets.to(device))

        return next_batch

    def module(self) -> nn.Module:
        return self.network()

    def examples(self, split: str) -> tuple[Tensor, Tensor]:
        return self.data[split]

    def loss(self, theta: Float[Tensor, "K D"], batch: Batch) -> Float[Tensor, " K"]:
        looped = self._looped(theta.device)
        return stacked_loss(self._loss, self.spec.unflatten(theta), batch.x, batch.y, looped=looped)

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        looped = self._looped(batch.x.device)
        return stacked_gradients(self._loss, params, batch.x, batch.y, looped=looped)

    @torch.no_grad()
    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        """Metrics are functions of the outputs of a whole split, so that they need not be means."""
        x, y = (each.to(theta.device) for each in self.data[split])
        found: dict[str, list[Tensor]] = {name: [] for name in self.metrics}
        runs_at_once = max(1, OUTPUT_NUMBERS // (len(x) * self.outputs_per_example))
        for networks in theta.split(runs_at_once):
            blocks = [self._outputs(networks, block) for block in x.split(EVALUATION_BLOCK)]
            for outputs in torch.cat(blocks, 1):
                for name, measure in self.measures.items():
                    found[name].append(torch.as_tensor(measure(outputs, y), dtype=torch.float32))
        return {name: torch.stack(values).to(theta.device) for name, values in found.items()}

    def _loss(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self._forward(params, x), y)

    def _forward(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.net, params, (x,))

    def _outputs(self, theta: Float[Tensor, "K D"], x: Tensor) -> Tensor:
        """(K, B, ...), all networks on the same examples."""
        if self._looped(theta.device):
            return torch.stack([self._forward(self.spec.unflatten(network), x) for network in theta])
        return vmap(self._forward, in_dims=(0, None))(self.spec.unflatten(theta), x)

    def _looped(self, device: torch.device) -> bool:
        return not self.can_stack or (self.has_convolutions and device.type == "cpu")

    def _check_fit(self, x: Tensor) -> None:
        """Module, inputs, labels and loss belong together, and a forward gives the same twice."""
        y = self.data["train"][1][: len(x)]
        name = type(self.net).__name__
        try:
            with torch.no_grad():
                outputs, again = self.net(x), self.net(x)
        except Exception as error:  # whatever the user's forward raises
            raise ValueError(
                f"{name} does not take inputs of shape {tuple(x.shape)}, {x.dtype}: {_one_line(error)}"
            ) from error
        if not isinstance(outputs, Tensor) or len(outputs) != len(x):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"{name} gives {got} for {len(x)} examples; expected a tensor ({len(x)}, ...)")
        if not torch.equal(outputs, again):
            raise ValueError(f"{name} gives other outputs each time; leave out what is random (dropout)")
        self.num_classes = 0
        if self.criterion is F.cross_entropy:
            self._check_labels(outputs)
            if y.ndim == 1 and not y.is_floating_point():
                self.num_classes = outputs.shape[1]
        try:
            values = {"loss": self.criterion(outputs, y)}
            values |= {f"metric {key!r}": measure(outputs, y) for key, measure in self.measures.items()}
        except Exception as error:  # ... or the user's loss
            raise ValueError(
                f"loss and metrics do not take outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(y.shape)}, {y.dtype}: {_one_line(error)}"
            ) from error
        for what, value in values.items():
            if torch.as_tensor(value).numel() != 1:
                raise ValueError(f"{what} is of shape {tuple(value.shape)}; expected one number")
        self.outputs_per_example = max(1, outputs[0].numel())

    def _check_labels(self, outputs: Tensor) -> None:
        classes = outputs.shape[1]
        for split, (_, y) in self.data.items():
            if y.is_floating_point():
                continue  # probabilities of classes
            bad = ((y < 0) | (y >= classes)).flatten().nonzero()
            if len(bad):
                row = int(bad[0])
                raise ValueError(
                    f"{split}: label {int(y.flatten()[row])} of example {row}; the network has {classes} "
                    f"outputs, so labels are 0 to {classes - 1}"
                )

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
            why = _one_line(error)
        if why:
            logger.warning("%s is trained network by network, not stacked: %s", type(self.net).__name__, why)
        return not why


def check_module(module: nn.Module) -> None:
    """Refuse a module whose function is not one of its parameters alone.

    Raises:
        ValueError: buffers, batch norm, dropout, tied, frozen or other than float32 parameters, or none.
    """
    for name, layer in module.named_modules():
        where = f"{type(layer).__name__} {name!r}"
        if isinstance(layer, BATCH_NORMS):
            raise ValueError(
                f"{where} normalises over the batch, and its running statistics are no parameters; use "
                "GroupNorm or LayerNorm"
            )
        if isinstance(layer, RANDOM):
            raise ValueError(f"{where} is random; leave it out, weight decay regularises without")
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        raise ValueError(
            f"{type(module).__name__} has buffers ({', '.join(buffers)}), which no checkpoint would hold; "
            "use layers without (GroupNorm or LayerNorm), and compute constants in forward"
        )
    named = list(module.named_parameters(remove_duplicate=False))
    tied = {id(value): name for name, value in reversed(named)}
    for name, value in named:
        if tied[id(value)] != name:
            raise ValueError(
                f"parameters {tied[id(value)]} and {name} are one and the same; use one layer twice instead"
            )
        if isinstance(value, UninitializedParameter):
            raise ValueError(f"parameter {name} has no shape yet; give the layer its sizes")
        if value.dtype != torch.float32 or not value.requires_grad:
            frozen = "" if value.requires_grad else ", frozen"
            raise ValueError(f"parameter {name} is {value.dtype}{frozen}; expected float32 that is trained")
    if not named:
        raise ValueError(f"{type(module).__name__} has no parameters to train")


def _as_tensors(data: Any) -> dict[str, tuple[Tensor, Tensor]]:
    if not isinstance(data, Mapping) or set(data) != set(SPLITS):
        given = ", ".join(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f'data has {given}; expected the splits "train", "validation" and "test"')
    found = {split: _pair(split, data[split]) for split in SPLITS}
    for split, (x, y) in found.items():
        for what, part, first in (("inputs", x, found["train"][0]), ("targets", y, found["train"][1])):
            if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                raise ValueError(
                    f"{split}: {what} of shape {tuple(part.shape[1:])}, {part.dtype}; those of train are "
                    f"{tuple(first.shape[1:])}, {first.dtype}"
                )
    return found


def _pair(split: str, given: Any) -> tuple[Tensor, Tensor]:
    """(x, y) with float64 made float32, as parameters are."""
    if isinstance(given, Dataset):
        try:
            given = default_collate([given[i] for i in range(len(given))])  # type: ignore[arg-type]
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{split}: examples of different sizes or kinds ({_one_line(error)})") from None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"{split} is {type(given).__name__}; expected tensors (x, y) or a Dataset of pairs")
    x, y = (torch.as_tensor(part) for part in given)
    x, y = (part.float() if part.dtype == torch.float64 else part for part in (x, y))
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or not len(x):
        raise ValueError(f"{split}: x is {tuple(x.shape)} and y {tuple(y.shape)}; expected N > 0 of each")
    if not x.isfinite().all():
        raise ValueError(f"{split}: inputs that are not finite")
    return x, y


@contextlib.contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """torch's global CPU generator, seeded inside and put back after; nn.Modules know no other."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
