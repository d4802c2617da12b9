"""Whether a user's module, data, loss and metrics make a task; each mistake is one line with its cure."""

import functools
import keyword
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.data import Dataset, default_collate

SPLITS = ("train", "validation", "test")
RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)
BATCH_NORMS = nn.modules.batchnorm._BatchNorm
TOLERANCE = 1e-3
"""Of outputs, relative to the largest: float32 sums in another order differ by 1e-5, other functions by 1."""

Data = dict[str, tuple[Tensor, Tensor]]
Metric = Callable[[Tensor, Tensor], Tensor]
"""(outputs (N, ...), targets (N, ...)) of a whole split -> a scalar."""


def error_rate(outputs: Float[Tensor, "N C *rest"], targets: Tensor) -> Tensor:
    """Share of labels whose class does not beat all others; neither NaN nor a tie does.

    Of probabilities of classes, the class is the most likely.
    """
    labels = targets.argmax(1) if targets.is_floating_point() else targets
    right = outputs.gather(1, labels.unsqueeze(1))
    return ((outputs >= right).sum(1) != 1).float().mean()


def is_cross_entropy(loss: Any) -> bool:
    """Whether a loss is torch's cross-entropy: the function, the module, or either with options set."""
    if isinstance(loss, functools.partial):
        return is_cross_entropy(loss.func)
    return loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


def check_measures(network: Any, measures: Mapping[str, Any], metric: str, objective: str) -> None:
    """Refuse a network that is none or one already, and metrics that no column can be called by."""
    if isinstance(network, nn.Module) or not callable(network):
        raise ValueError(
            f"network is a {type(network).__name__}; expected a class or function that makes a fresh module"
        )
    for name, measure in measures.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"a metric is called {name!r}; expected letters, digits and _, as of a variable")
        if not callable(measure):
            raise ValueError(f"metric {name!r} is {measure!r}; expected a function of outputs and targets")
    if metric not in measures:
        raise ValueError(f"metric is {metric!r}; expected one of {', '.join(measures)}")
    if objective not in ("min", "max"):
        raise ValueError(f"objective is {objective!r}; expected 'min' or 'max'")


def check_module(module: Any) -> None:
    """Refuse a module whose function is not one of its parameters alone.

    Raises:
        ValueError: buffers, batch norm, dropout, tied, frozen or other than float32 parameters, or none.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"network() gives a {type(module).__name__}; expected a torch.nn.Module")
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


def tensors_of(data: Any) -> Data:
    """The splits as tensors (x, y) of as many examples, of one shape and kind in all splits."""
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
            raise ValueError(f"{split}: examples of different sizes or kinds ({one_line(error)})") from None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"{split} is {type(given).__name__}; expected tensors (x, y) or a Dataset of pairs")
    try:
        x, y = (torch.as_tensor(part) for part in given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{split}: x or y is no tensor of numbers ({one_line(error)})") from None
    x, y = (part.float() if part.dtype == torch.float64 else part for part in (x, y))
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or not len(x):
        raise ValueError(f"{split}: x is {tuple(x.shape)} and y {tuple(y.shape)}; expected N > 0 of each")
    for what, part in (("inputs", x), ("targets", y)):
        if not part.isfinite().all():
            row = int(
                (~part.flatten(1).isfinite().all(1) if part.ndim > 1 else ~part.isfinite()).int().argmax()
            )
            raise ValueError(f"{split}: {what} that are not finite, the first in example {row}")
    return x, y


def check_fit(net: nn.Module, x: Tensor) -> Tensor:
    """The module's outputs for a few examples.

    Raises:
        ValueError: it does not take them, or what it makes of one depends on more than parameters: on chance,
            on the mode, on the rest of the batch.
    """
    name, half, training = type(net).__name__, len(x) // 2, net.training
    try:
        with torch.no_grad():
            outputs, again = net(x), net(x)
            part = net(x[:half]) if half else outputs[:0]
            evaluated = net.eval()(x)
    except Exception as error:  # whatever the user's forward raises
        raise ValueError(
            f"{name} does not take inputs of shape {tuple(x.shape)}, {x.dtype}: {one_line(error)}"
        ) from error
    finally:
        net.train(training)
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(x):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"{name} gives {got} for {len(x)} examples; expected a tensor ({len(x)}, ...)")
    if not torch.equal(outputs, again):
        raise ValueError(f"{name} gives other outputs each time; leave out what is random (dropout)")
    if not _same(evaluated, outputs):
        raise ValueError(
            f"{name} gives other outputs in eval mode than in train mode; a checkpoint knows no mode: leave "
            "out what depends on it"
        )
    if half and not _same(part, outputs[:half]):
        raise ValueError(
            f"{name} gives other outputs for {half} examples alone than among {len(x)}; what is made of one "
            "may not depend on the rest of its batch: normalise over channels instead (GroupNorm, LayerNorm)"
        )
    return outputs


def check_labels(name: str, outputs: Tensor, data: Data) -> tuple[Data, int]:
    """For cross-entropy: the data with integer labels as int64, and how many classes; 0 for soft labels.

    Raises:
        ValueError: outputs that are not one for each class, or a label that is none of them.
    """
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"{name} gives {tuple(outputs.shape)} for {len(outputs)} examples; cross-entropy needs a number "
            "for each class, (N, classes), two for two classes"
        )
    classes = outputs.shape[1]
    if data["train"][1].is_floating_point():
        return data, 0  # probabilities of classes
    for split, (_, y) in data.items():
        bad = ((y < 0) | (y >= classes)).flatten(1).any(1) if y.ndim > 1 else (y < 0) | (y >= classes)
        if bad.any():
            row = int(bad.int().argmax())
            label = y[row][(y[row] < 0) | (y[row] >= classes)].flatten()[0]
            raise ValueError(
                f"{split}: label {int(label)} of example {row}; the network has {classes} outputs, so labels "
                f"are 0 to {classes - 1}"
            )
    one_each = data["train"][1].ndim == 1
    return {split: (x, y.long()) for split, (x, y) in data.items()}, classes if one_each else 0


def check_losses(loss: Metric, measures: Mapping[str, Metric], outputs: Tensor, y: Tensor) -> None:
    """Loss and metrics take such outputs and targets, and give a number.

    Raises:
        ValueError: they do not, or the loss would silently compare each output with every target.
    """
    about = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(y.shape)}, {y.dtype}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own losses warn of broadcasting, refused below
            values = {"loss": loss(outputs, y)}
            values |= {f"metric {key!r}": measure(outputs, y) for key, measure in measures.items()}
            squeezable = y.is_floating_point() and outputs.shape != y.shape and outputs.numel() == y.numel()
            exchanged = loss(outputs, y.flip(0)) if squeezable and not y.equal(y.flip(0)) else None
    except Exception as error:  # whatever the user's functions raise
        raise ValueError(f"loss and metrics do not take {about}: {one_line(error)}") from error
    for what, value in values.items():
        try:
            number = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{what} is a {type(value).__name__}; expected one number") from None
        if number.numel() != 1:
            raise ValueError(f"{what} is of shape {tuple(number.shape)}; expected one number")
    if exchanged is not None and _same(exchanged, torch.as_tensor(values["loss"])):
        raise ValueError(
            f"the loss compares every output with every target, not each with its own: {about}; give both "
            "one shape: targets y.view(outputs.shape), or squeeze the outputs in forward"
        )


def _same(got: Any, expected: Tensor) -> bool:
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return False
    scale = float(expected.abs().nan_to_num(0.0, 0.0).max()) if expected.numel() else 0.0
    return torch.allclose(got, expected, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
