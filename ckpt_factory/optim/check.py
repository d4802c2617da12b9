"""check_optimizer: the contract that every optimizer over stacks keeps; who is in the table is tested."""

import io
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .kinds import OptimizerKind

SHAPES = {"matrix": (4, 3), "bias": (4,), "scalar": ()}
"""Of one run's parameters: whatever a rule decides by shape, both sides of it are there."""


def check_optimizer(kind: OptimizerKind, *, tolerance: float = 1e-4) -> None:
    """Check that an optimizer keeps the contract; raises AssertionError naming the first clause broken.

    It solves a parabola; a stack moves as its runs do one by one, with a run axis and without; each run
    obeys its own learning rate, set anew every step; a state saved in the middle goes on bit for bit; the
    parameters' dtype stays.
    """
    _check_parabola(kind)
    _check_singles(kind, tolerance)
    _check_learning_rates(kind)
    _check_state(kind)
    _check_dtypes(kind)


def _check_parabola(kind: OptimizerKind) -> None:
    """Of rates around the kind's usual ones some run must come down, annealed, to the minimum."""
    num_steps, rates = 300, kind.lr_ratio * torch.logspace(-2, 0.5, 11)
    params, targets = _random(len(rates), seed=0), _random(len(rates), seed=1)
    start = _distance(params, targets)
    optimizer = _make(kind, params, lr=rates, weight_decay=0.0)
    for step in range(num_steps):
        for name, param in params.items():
            param.grad = param - targets[name]
        optimizer.param_groups[0]["lr"] = rates * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimizer.step()
    share = _distance(params, targets) / start
    _assert(
        bool((share < 0.01).any()), f"it solves a parabola (distance left: {share.nan_to_num(1).min():.2g})"
    )


def _check_singles(kind: OptimizerKind, tolerance: float) -> None:
    lr = kind.lr_ratio * torch.tensor([0.03, 0.1, 0.2])
    weight_decay, momentum = torch.tensor([0.0, 0.1, 0.5]), torch.tensor([0.9, 0.5, 0.8])

    def moved(part: slice | int, *own: Tensor | float, stacked: bool = True) -> dict[str, Tensor]:
        params = _part(_random(len(lr), seed=0), part)
        optimizer = _make(kind, params, lr=own[0], weight_decay=own[1], momentum=own[2], stacked=stacked)
        _run(optimizer, params, range(8), part=part)
        return params

    stack = moved(slice(None), lr, weight_decay, momentum)
    for k in range(len(lr)):
        own = [float(values[k]) for values in (lr, weight_decay, momentum)]
        single, plain = moved(slice(k, k + 1), *own), moved(k, *own, stacked=False)
        for name, values in stack.items():
            clause = f"{name} of run {k} moves in a stack as"
            _close(single[name][0], values[k], tolerance, f"{clause} alone, a stack of one")
            _close(plain[name], values[k], tolerance, f"{clause} without a run axis")


def _check_learning_rates(kind: OptimizerKind) -> None:
    """A step, and one with the rates of two runs exchanged: each is by the run's own; no average blurs it."""
    start = _random(1, seed=0)
    params = {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in start.items()}
    optimizer = _make(kind, params, lr=torch.zeros(3), momentum=0.0)
    for step, rates in enumerate([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]):
        before = {name: value.clone() for name, value in params.items()}
        for name, gradient in _random(1, seed=100 + step).items():
            params[name].grad = gradient.repeat(3, *[1] * (gradient.ndim - 1))
        optimizer.param_groups[0]["lr"] = 0.01 * kind.lr_ratio * torch.tensor(rates)
        optimizer.step()
        for name, value in params.items():
            moved = _norms(value - before[name])
            _assert(float(moved[0]) == 0, f"{name} of a run whose lr is 0 stays where it is")
            slow, fast = moved[rates.index(1.0)], moved[rates.index(2.0)]
            _assert(bool(fast > 1.2 * slow > 0), f"{name} of a run moves by the lr of its own")


def _check_state(kind: OptimizerKind) -> None:
    params = _random(2, seed=0)
    optimizer = _make(kind, params, lr=0.1 * kind.lr_ratio * torch.tensor([0.5, 1.0]), weight_decay=0.1)
    _run(optimizer, params, range(5))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    _run(optimizer, params, range(5, 9))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = _make(kind, saved["params"], lr=1.0)
    resumed.load_state_dict(saved["optimizer"])
    _run(resumed, saved["params"], range(5, 9))
    for name, value in params.items():
        same = torch.equal(saved["params"][name], value)
        _assert(same, f"a state saved and loaded in the middle goes on bit for bit ({name} differs)")


def _check_dtypes(kind: OptimizerKind) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for lr in (0.1 * kind.lr_ratio, torch.full((2,), 0.1 * kind.lr_ratio)):
            params = {name: value.to(dtype) for name, value in _random(2, seed=0).items()}
            _run(_make(kind, params, lr=lr, weight_decay=0.1), params, range(3))
            for name, value in params.items():
                _assert(value.dtype == dtype, f"{name} of {dtype} keeps its dtype")
                _assert(bool(value.isfinite().all()), f"{name} of {dtype} stays finite")


def _random(num_runs: int, *, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num_runs, *shape, generator=rng) for name, shape in SHAPES.items()}


def _part(values: Mapping[str, Tensor], part: slice | int) -> dict[str, Tensor]:
    return {name: value[part].clone() for name, value in values.items()}


def _make(
    kind: OptimizerKind,
    params: Mapping[str, Tensor],
    *,
    lr: Tensor | float,
    weight_decay: Tensor | float = 0.0,
    momentum: Tensor | float = 0.9,
    stacked: bool = True,
) -> Optimizer:
    values = list(params.values())
    return kind.make(values, lr=lr, weight_decay=weight_decay, momentum=momentum, stacked=stacked)


def _run(
    optimizer: Optimizer, params: Mapping[str, Tensor], steps: range, *, part: slice | int = slice(None)
) -> None:
    """Steps with gradients that depend on the step alone; `part` takes its share of those of three runs."""
    num_runs = len(params["scalar"]) if part == slice(None) else 3
    for step in steps:
        for name, gradient in _part(_random(num_runs, seed=100 + step), part).items():
            params[name].grad = gradient.to(params[name].dtype)
        optimizer.step()


def _distance(params: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([_norms(params[name] - targets[name]).square() for name in params]).sum(0)


def _norms(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).norm(dim=1)


def _assert(holds: bool, clause: str) -> None:
    if not holds:
        raise AssertionError(f"check_optimizer: broken contract: {clause}")


def _close(got: Tensor, expected: Tensor, tolerance: float, clause: str) -> None:
    error = float((got - expected).abs().max() / (1 + expected.abs().max()))
    _assert(error <= tolerance, f"{clause} (differs by {error:.2g}, tolerance {tolerance:g})")
