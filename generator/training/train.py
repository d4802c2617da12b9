"""The generator's training loop: plain torch, one process or one rank of many."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from ckpt_factory.optim import optimizer_kind
from ckpt_factory.tasks.base import seeded

from ..conditioning import Scaling
from ..model.dit import Denoiser, DiTConfig
from ..model.prediction import WeightingName, error_scale
from ..model.width import parameter_groups
from ..sampling.diffusion import add_noise
from .behaviour import Behaviour
from .meter import Meter
from .pairs import Pairs, PairsName

Precision = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["adamw", "sgd", "lion", "tiger", "amos"]
TRANSFERS = ("adamw", "lion")
"""Optimizers whose steps have the size of the learning rate in every entry: their widths transfer."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the generator is trained."""

    model: DiTConfig = field(default_factory=DiTConfig)
    """Kind and size of the transformer."""
    steps: int = 4000
    """Optimizer steps; training ends there or at the time budget, whichever comes first."""
    time_budget_s: float | None = None
    """Seconds of training after which it ends; the learning rate is annealed towards that end."""
    cpu_budget_s: float | None = None
    """The same in CPU seconds of a worker's process, without those of reports and checkpoints: on a machine
    with other work a fair measure of what a training has cost."""
    batch_size: int = 128
    """Pairs per worker and step."""
    pairs: PairsName = "stratified"
    """Which pairs of a run are drawn. stratified: targets of every metric, half of the starts
    initialisations. published: the spacing between both uniform (Peebles et al. 2022)."""
    weighting: WeightingName = "none"
    """Of squared errors by time. none: as they are of what is predicted. min-snr: as those of clean updates
    times the signal-to-noise ratio, at most 5 (Hang et al. 2023)."""
    behaviour: float | None = None
    """How much it matters that networks answer training examples as those of the zoo do: the weight of the
    divergence between both's answers, in nats for classifiers, beside the squared errors. Default 100 where
    networks answer examples, 0 where they do not, as policies."""
    behaviour_examples: int = 64
    """Examples a step that all its networks answer; for expensive networks fewer."""
    optimizer: OptimizerName = "adamw"
    """The rule of its steps. Its lr and weight decay are its own; good ones to begin with: adamw 4e-3, 0.01;
    lion 1e-3, 0.03; tiger 2e-2, 0.01; amos 0.1, 0 (it decays by itself); sgd 1, 1e-4."""
    lr: float = 4e-3
    """Peak learning rate, in the optimizer's own units; cosine to zero."""
    weight_decay: float = 0.01
    """On weight matrices only."""
    warmup_steps: int = 100
    """Linear warm-up."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.999
    """Decay of the average of parameters that becomes the generator."""
    precision: Precision = "auto"
    """bfloat16 autocast, float32, or whichever a short measurement on this processor finds faster."""
    seed: int = 0
    """Seed of initialisation, pairs and noise."""
    report_every: int = 25
    """Steps between reports."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, from which a killed training goes on."""
    checkpoint_every_s: float = 20.0
    """Seconds between checkpoints, where that comes first; more where writing one takes a second or longer:
    20 times as long as that."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "behaviour_examples", "report_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected a non-negative integer")
        for name in ("lr", "clip_norm", "checkpoint_every_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive, finite number")
        if self.behaviour is not None and not 0 <= self.behaviour < math.inf:
            raise ValueError(f"behaviour is {self.behaviour}; expected a finite number, 0 or more")
        if not 0 <= self.ema < 1 or not 0 <= self.weight_decay < math.inf or self.warmup_steps < 0:
            raise ValueError(
                f"ema {self.ema} must be in [0, 1), weight_decay {self.weight_decay} and warmup_steps "
                f"{self.warmup_steps} finite and not negative"
            )
        if self.model.base_width is not None and self.optimizer not in TRANSFERS:
            raise ValueError(
                f"base_width is {self.model.base_width} with optimizer {self.optimizer!r}, whose rates "
                f"follow other rules; expected one of {', '.join(TRANSFERS)}"
            )
        for name in ("time_budget_s", "cpu_budget_s"):
            if (given := getattr(self, name)) is not None and not given > 0:
                raise ValueError(f"{name} is {given}; expected a positive number of seconds")


SYNC_EVERY = 10
"""Steps between agreements of all workers on how much of the training has passed."""
SAVES_APART = 20.0
"""From a checkpoint to the next it takes at least so many times as long as to write one."""

Draw = Callable[[int, int, torch.Generator], Pairs]
"""(step, number of pairs, rng) -> pairs."""
Report = Callable[[dict[str, float | int], dict[str, Any] | None], None]
"""(metrics, the state if this is a checkpoint) -> None."""


class Training:
    """What changes while a generator is trained, and all that a resumed training needs."""

    def __init__(self, model: Denoiser, config: TrainConfig, rank: int):
        self.model, self.config, self.rank = model, config, rank
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = _make_optimizer(parameter_groups(model, config.weight_decay), config)
        self.rng = seeded(config.seed, 1, rank)
        self.step, self.elapsed_s = 0, 0.0
        self.process_s = 0.0
        """CPU seconds of this process, without what reports took."""
        self.save_s = 0.0
        """What the last checkpoint took."""

    def update(self, loss: Tensor, progress: float) -> None:
        """One optimizer step, and the average follows."""
        for group in self.optimizer.param_groups:
            group["lr"] = (
                self.config.lr * group.get("lr_scale", 1.0) * _lr_factor(self.step, progress, self.config)
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.step += 1
        decay = min(
            self.config.ema, self.step / (self.step + 9)
        )  # the average is short while the model is young
        with torch.no_grad():
            averages: list[Tensor] = [*self.ema.parameters()]
            now: list[Tensor] = [*self.model.parameters()]
            # one call for all of them, as in torch's own optimizers
            torch._foreach_lerp_(averages, now, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict[str, Any]:
        """Everything, with the generators of all ranks: every rank calls this."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "process_s": self.process_s,
            "rng": _of_all_ranks(self.rng.get_state(), next(self.model.parameters()).device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.process_s = state["process_s"]
        self.rng.set_state(state["rng"][self.rank])


def train(
    model: Denoiser,
    draw: Draw,
    scaling: Scaling,
    config: TrainConfig,
    *,
    report: Report,
    behaviour: Behaviour | None = None,
    state: Mapping[str, Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    rank: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Train `model` in place and return its exponential moving average.

    The loss is the mean squared error of what the model predicts of the scaled update, see `error_scale`,
    and of `behaviour` the weighted mean divergence of clean predictions.

    Args:
        draw: what it gives must be a function of what it is given alone.
        behaviour: what predicted networks answer, if that matters.
        report: called every `report_every` steps by every rank, with a state every `checkpoint_every`.
        state: what `report` was given, to go on from; training continues as if it had never stopped.
        wrap: for distributed training, module -> DistributedDataParallel.
        rank: of this worker; each draws pairs and noise of its own.

    Raises:
        ValueError: the training has diverged. Nothing of it is reported or saved.
    """
    training = Training(model.to(device), config, rank)
    if state is not None:
        training.load_state_dict(state)
    wrapped, autocast = wrap(model).train(), _autocast(config, device)
    scaling, behaviour = scaling.to(device), behaviour.to(device) if behaviour else None
    began, progress, meter = time.monotonic() - training.elapsed_s, 0.0, Meter()
    since = time.process_time()
    saved_s = agreed_s = training.elapsed_s
    while True:
        step = training.step
        training.elapsed_s = time.monotonic() - began
        training.process_s, since = training.process_s + time.process_time() - since, time.process_time()
        if step % SYNC_EVERY == 0 or not meter.pairs:
            progress, agreed_s = _agree(training, device)
        ends = max(progress, step / config.steps) >= 1
        late = agreed_s - saved_s >= max(config.checkpoint_every_s, SAVES_APART * training.save_s)
        save = ends or late or step % config.checkpoint_every == 0
        if meter.losses and (save or step % config.report_every == 0):
            metrics = _metrics(training, meter, progress)
            _check_finite(training, metrics["loss"], device)
            asked = time.monotonic()
            report(metrics, training.state_dict() if save else None)
            since = time.process_time()
            if save:
                saved_s, training.save_s = agreed_s, time.monotonic() - asked
        if ends:
            return training.ema
        pairs = _drawn(draw, training, meter, device)
        t, found = _erred(training, wrapped, autocast, pairs, scaling)
        training.update(_loss(training, pairs, t, found, scaling, behaviour, meter), progress)


def _autocast(config: TrainConfig, device: torch.device | str) -> torch.autocast:
    """In the precision of the config, measured if that is left to the processor."""
    precision = config.precision
    if precision == "auto":
        precision = faster_precision(config.model.width, device)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def _metrics(training: Training, meter: Meter, progress: float) -> dict[str, float | int]:
    """What a report says."""
    passed = max(progress, training.step / training.config.steps)
    told = {"step": training.step, "progress": min(1.0, passed), **meter.read()}
    return told | {"train_s": training.elapsed_s, "process_s": training.process_s}


def _drawn(draw: Draw, training: Training, meter: Meter, device: torch.device | str) -> Pairs:
    """The pairs of the next step, some without their prompt; the meter is told how many and how long."""
    asked = time.monotonic()
    pairs = draw(training.step, training.config.batch_size, training.rng)
    pairs = Pairs(*(tensor.to(device) for tensor in pairs))
    meter.waited_s += time.monotonic() - asked
    meter.pairs += training.config.batch_size
    return _without_some_prompts(pairs, training.model.config.prompt_dropout, training.rng)


def _erred(
    training: Training, wrapped: nn.Module, autocast: torch.autocast, pairs: Pairs, scaling: Scaling
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B Z"]]:
    """Times drawn for the pairs, and the errors of predictions at them."""
    t = training.model.times.training(len(pairs.prompt), rng=training.rng)
    with autocast:
        return t, errors(wrapped, pairs, t, scaling, training.rng)


def _loss(
    training: Training,
    pairs: Pairs,
    t: Float[Tensor, " B"],
    found: Float[Tensor, "B Z"],
    scaling: Scaling,
    behaviour: Behaviour | None,
    meter: Meter,
) -> Tensor:
    """What errors at the times t are to be made small by; the meter is told its parts."""
    config, path = training.config, training.model.times.path
    scale = error_scale(config.model.prediction, path, config.weighting, t.to(found.device))
    loss = (found * scale.unsqueeze(1)).square().mean()
    meter.losses.append(loss.detach())
    if behaviour is None:
        return loss
    made = pairs.target + scaling.unscale_update(found)
    apart = behaviour.divergence(made, pairs.target, rng=training.rng).mean()
    meter.divergences.append(apart.detach())
    return loss + behaviour.weight * apart


def _make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":  # torch's own makes one pass over memory, ours several
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    make = optimizer_kind(config.optimizer).make
    return make(groups, lr=config.lr, weight_decay=config.weight_decay, momentum=0.9, stacked=False)


def errors(
    model: nn.Module, pairs: Pairs, t: Float[Tensor, " B"], scaling: Scaling, rng: torch.Generator
) -> Float[Tensor, "B Z"]:
    """Predicted less true scaled updates, noised to the times t."""
    u0 = scaling.update(pairs.start, pairs.target)
    t = t.to(u0)
    noisy = add_noise(u0, t, rng=rng)
    metrics = scaling.condition(pairs.start_metric, pairs.prompt)
    predicted = model(noisy, t, scaling.start(pairs.start), metrics)
    return predicted.float() - u0


def _without_some_prompts(pairs: Pairs, share: float, rng: torch.Generator) -> Pairs:
    """A prompt that is dropped is NaN."""
    if not share:
        return pairs
    dropped = torch.rand(len(pairs.prompt), 1, generator=rng).to(pairs.prompt) < share
    return pairs._replace(prompt=pairs.prompt.masked_fill(dropped, torch.nan))


def _lr_factor(step: int, progress: float, config: TrainConfig) -> float:
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    done = max(progress, step / config.steps)
    return warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, done)))))


def _agree(training: Training, device: torch.device | str) -> tuple[float, float]:
    """(share of the training that has passed, by steps or by a clock; seconds): rank 0's clocks are all's,
    and so is what its last checkpoint took."""
    config = training.config
    own = [training.elapsed_s, training.process_s, training.save_s]
    clocks = torch.tensor(own, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.broadcast(clocks, 0)
    elapsed_s, process_s, training.save_s = clocks.tolist()
    shares = [training.step / config.steps]
    for passed, budget in ((elapsed_s, config.time_budget_s), (process_s, config.cpu_budget_s)):
        if budget is not None:
            shares.append(passed / budget)
    return max(shares), elapsed_s


def _check_finite(training: Training, loss: float, device: torch.device | str) -> None:
    """Refuse to go on from numbers that are none, in all workers at once; called before they are saved.

    Raises:
        ValueError: the mean loss of any worker since its last report, or a parameter, is not finite.
    """
    sound = all(bool(values.isfinite().all()) for values in training.ema.parameters())
    losses = torch.tensor(loss if sound else math.nan, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(losses)  # what is not finite makes the sum so
    if not losses.isfinite():
        raise ValueError(
            f"training diverged near step {training.step} (loss {float(losses):g}); lower --lr, which is "
            f"{training.config.lr:g}"
        )


def _of_all_ranks(own: Tensor, device: torch.device) -> list[Tensor]:
    """On the CPU; gathered on the model's device, the one that the workers' backend is sure to know."""
    if not dist.is_initialized():
        return [own]
    states = [torch.empty_like(own, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(states, own.to(device))
    return [state.cpu() for state in states]


def faster_precision(width: int, device: torch.device | str = "cpu") -> Precision:
    """On a CPU times a matrix product of the model's size in both: bfloat16 must make up for its casts. GPUs
    that know bfloat16 are faster with it."""
    kind = torch.device(device).type
    if kind != "cpu":
        known = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if known else "float32"
    x, weight = torch.randn(2048, width), torch.randn(width, 4 * width)

    def seconds(dtype: torch.dtype) -> float:
        a, b, best = x.to(dtype), weight.to(dtype), float("inf")
        for _ in range(5):
            began = time.process_time()
            for _ in range(4):
                torch.mm(a, b)
            best = min(best, time.process_time() - began)
        return best

    return "bfloat16" if seconds(torch.bfloat16) < 0.7 * seconds(torch.float32) else "float32"
