"""Prompting: one update, or one after the other, of fresh networks or of the user's own."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import ParamSpec, Task
from ckpt_factory.files import write_tensors

from .artefact import WeightGenerator
from .channels import by_name, check_names

MEASURED_AT_ONCE = 1024
"""Networks whose metrics are measured at once: memory does not grow with their number."""


@dataclass(frozen=True)
class Prompted:
    """K networks made for their prompts, after each of U updates, with what they achieve."""

    theta: Float[Tensor, "K D"]
    """The last update's networks."""
    prompts: dict[str, Float[Tensor, " K"]]
    """Of every metric that was prompted, by name: loss, error."""
    start: dict[str, Float[Tensor, " K"]]
    """Metrics of the start networks, by column: validation_loss, test_error, ..."""
    achieved: list[dict[str, Float[Tensor, " K"]]]
    """Metrics after each update."""
    sampling_s: float
    """Seconds that sampling took, measuring of metrics left out."""

    @property
    def networks_per_s(self) -> float:
        """Networks sampled a second, each once an update."""
        return len(self.theta) * len(self.achieved) / self.sampling_s


def prompt_networks(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "K D"],
    prompt: Float[Tensor, " K"] | Mapping[str, Float[Tensor, " K"]],
    *,
    rng: torch.Generator,
    updates: int = 1,
    start: Mapping[str, Float[Tensor, " K"]] | None = None,
) -> Prompted:
    """Update networks for their prompts, `updates` times in a row, each time from what the last one achieved.

    The generator is conditioned on validation metrics; test metrics are measured for the report alone.
    Networks without a finite metric, which are broken, stay as they are.

    Args:
        prompt: of the main metric, or of any metrics by name.
        start: what `measured` says of the start networks, where that is known; default it is measured.
    """
    if updates < 1:
        raise ValueError(f"updates is {updates}; expected at least 1")
    prompts = {name: torch.as_tensor(wish) for name, wish in by_name(prompt, generator.metric).items()}
    check_names(generator.metrics, list(prompts))
    own = now = measured(task, theta) if start is None else dict(start)
    achieved, sampling_s = [], 0.0
    for _ in range(updates):
        metrics = {name: now[generator.column_of(name)] for name in prompts}
        began = time.perf_counter()
        theta = _updated(generator, theta, metrics, prompts, rng)
        sampling_s += time.perf_counter() - began
        now = measured(task, theta)
        achieved.append(now)
    return Prompted(theta, prompts, own, achieved, sampling_s)


def _updated(
    generator: WeightGenerator,
    theta: Float[Tensor, "K D"],
    metrics: Mapping[str, Float[Tensor, " K"]],
    prompts: Mapping[str, Float[Tensor, " K"]],
    rng: torch.Generator,
) -> Float[Tensor, "K D"]:
    """One update of the networks whose metrics are finite, beside the others as they are."""
    sound = torch.stack([each.isfinite() for each in metrics.values()]).all(0)
    if sound.all():
        return generator.update(theta, metrics, prompts, rng=rng)
    if not sound.any():
        return theta
    some = [{name: each[sound] for name, each in values.items()} for values in (metrics, prompts)]
    updated = theta.clone()
    updated[sound] = generator.update(theta[sound], *some, rng=rng)
    return updated


def measured(task: Task, theta: Float[Tensor, "K D"]) -> dict[str, Float[Tensor, " K"]]:
    """Validation and test metrics of networks by the zoo's columns, of so many at once that memory holds."""
    parts = [task.metrics_of(part) for part in theta.split(MEASURED_AT_ONCE)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_prompts(
    generator: WeightGenerator, prompts: Sequence[float], metric: str | None = None
) -> list[str]:
    """Warnings for prompts of a metric, default the main one, outside of what the zoo has seen.

    Raises:
        ValueError: a prompt is not a finite number, or the generator knows no such metric.
    """
    metric = generator.metric if metric is None else metric
    check_names(generator.metrics, [metric])
    low, high = generator.range_of(metric)
    for prompt in prompts:
        if not torch.isfinite(torch.tensor(prompt)):
            raise ValueError(
                f"prompt is {prompt}; expected a finite {metric}, like {generator.best_of(metric):.3g}"
            )
    outside = [prompt for prompt in prompts if not low <= prompt <= high]
    if not outside:
        return []
    return [
        f"prompted {metric} {', '.join(f'{p:g}' for p in outside)} lies outside of what the zoo "
        "has seen, "
        f"{low:.4g} to {high:.4g}: expect no more than the nearest end of that range"
    ]


def check_made(generator: WeightGenerator, made: Prompted) -> list[str]:
    """Warnings for start networks unlike any in the zoo, and for networks that came out broken."""
    warnings = []
    for name in made.prompts:
        (low, high), column = generator.range_of(name), generator.column_of(name)
        starts, beyond = made.start[column], 0.5 * (high - low)  # worse by less than that is no matter
        least, most = (low, high + beyond) if generator.objective_of(name) == "min" else (low - beyond, high)
        strange = starts[~((starts >= least) & (starts <= most))]
        if len(strange):
            warnings.append(
                f"{len(strange)} start networks have a {column} outside of what the zoo has seen, {low:.4g} "
                f"to {high:.4g} (like {float(strange[0]):.4g}): expect little of their updates"
            )
        if broken := int((~made.achieved[-1][column].isfinite()).sum()):
            warnings.append(f"{broken} of the networks made have no finite {column}")
    return warnings


def load_network(path: Path, spec: ParamSpec) -> Float[Tensor, "1 D"]:
    """A state_dict from a safetensors file, as theta.

    Raises:
        ValueError: no such file, not safetensors, other names or shapes, or non-finite numbers.
    """
    try:
        state = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ValueError(f"no file {path}; expected a state_dict saved as safetensors") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); save it with safetensors.torch.save_file"
        ) from None
    state = {name: value.float() for name, value in state.items()}
    try:
        theta = spec.flatten(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if theta.ndim != 1:
        raise ValueError(f"{path} holds a stack of {len(theta)} networks; give a file with one")
    if not theta.isfinite().all():
        bad = [name for name, value in state.items() if not value.isfinite().all()]
        raise ValueError(
            f"{path}: {', '.join(bad)} holds NaN or infinity (as float32); give finite parameters"
        )
    return theta.unsqueeze(0)


def save_networks(
    folder: Path, spec: ParamSpec, theta: Float[Tensor, "K D"], names: Sequence[str]
) -> list[Path]:
    """Write each network as `<name>.safetensors`, a state_dict that its plain torch module loads."""
    paths = []
    for row, name in zip(theta.cpu(), names, strict=True):
        path = folder / f"{name}.safetensors"
        write_tensors(path, spec.unflatten(row))
        paths.append(path)
    return paths


def linear_prompts(
    best: float, start_metric: Float[Tensor, " N"], start_share: float, num: int = 20
) -> Float[Tensor, "N P"]:
    """The published prompts: linear from the best metric, the first, to a share of each start network's own.

    The same for losses and returns, whose best is above: there the share is 1.
    """
    worst = start_share * start_metric
    return best + (worst - best).unsqueeze(1) * torch.linspace(0, 1, num)
