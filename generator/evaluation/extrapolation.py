"""Prompts where nothing was seen: beyond the best metric of the zoo, and in a hole that was left out."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded

from ..artefact import WeightGenerator
from ..medians import median, quartiles
from ..prompt import measured, prompt_networks
from ..training.hole import Hole, inside, outside
from .evaluate import retrieval
from .recipe import better

FARTHEST = 0.25
"""Share of the metric's range that is prompted for beyond the best, where the best is not above 0."""
AROUND = 5
"""Prompts in the hole, and as many beside it on either side."""


def prompts_beyond(generator: WeightGenerator, num: int) -> Float[Tensor, " num"]:
    """From the best metric of the training runs onwards: losses to 0, others a quarter of the range on."""
    low, high = generator.scaling.metric_range
    if generator.origin.objective == "min":
        return torch.linspace(low, 0.0 if low > 0 else low - FARTHEST * (high - low), num)
    return torch.linspace(high, high + FARTHEST * (high - low), num)


def prompts_around(generator: WeightGenerator, hole: Hole) -> Float[Tensor, " P"]:
    """Prompts in a hole, evenly spaced, and on both sides of it as far as the hole is wide."""
    (low, high), (least, largest) = hole, generator.scaling.metric_range
    width = high - low
    below = torch.linspace(max(least, low - width), low, AROUND)
    within = torch.linspace(low, high, AROUND + 2)[1:-1]
    return torch.cat([below, within, torch.linspace(high, min(largest, high + width), AROUND)])


def same_prompts(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    prompts: Float[Tensor, " P"],
    *,
    seed: int,
) -> dict[str, Float[Tensor, "N P"]]:
    """One update of every start for each prompt, the same noise for all prompts: metrics by column."""
    start, achieved = measured(task, theta), []
    for prompt in prompts.tolist():
        wish = torch.full((len(theta),), prompt)
        made = prompt_networks(generator, task, theta, wish, rng=seeded(seed), start=start)
        achieved.append(made.achieved[-1])
    return {name: torch.stack([each[name] for each in achieved], 1) for name in achieved[0]}


def beyond_the_best(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    training: dict[str, Float[Tensor, " C"]],
    *,
    num: int,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is achieved for the best metric of the zoo and for better ones, as numbers and arrays.

    Prompts are asked for as they are: calibrated ones would all be the one that training starts did best by.
    Updates are as long as calibration found to be best.
    Validation metrics choose, the prompt as well as the network and the zoo's checkpoint that is compared
    with; what is reported are their test metrics.
    """
    if generator.calibration is not None:
        generator = replace(generator, calibration=generator.calibration.of_length())
    prompted, column, objective = generator.origin.prompted, f"test_{generator.metric}", task.objective
    prompts = prompts_beyond(generator, num)
    made = same_prompts(generator, task, theta, prompts, seed=seed)
    chosen = better(objective, median(made[prompted], 0).tolist())
    network = better(objective, made[prompted].flatten().tolist())
    zoo = float(training[column][better(objective, training[prompted].tolist())])
    sign = 1.0 if objective == "min" else -1.0
    numbers = {
        "beyond_prompts": prompts.tolist(),
        f"beyond_{column}": median(made[column], 0).tolist(),
        f"beyond_{column}_quartiles": [quartiles(each) for each in made[column].T],
        "beyond_best_prompt": float(prompts[chosen]),
        f"beyond_best_{column}": float(median(made[column][:, chosen])),
        f"beyond_best_{column}_std_over_networks": float(made[column][:, chosen].std(correction=0)),
        f"beyond_best_network_{column}": float(made[column].flatten()[network]),
        f"beyond_zoo_{column}": zoo,
        "beyond_share_better": float((sign * made[column][:, chosen] < sign * zoo).float().mean()),
    }
    return numbers, {"beyond_prompts": prompts} | {f"beyond_{name}": v for name, v in made.items()}


def in_the_hole(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    training: dict[str, Float[Tensor, " C"]],
    hole: Hole,
    *,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is achieved for prompts in the hole and beside it, and what looking up gives there.

    Errors are root mean squares of the test metric achieved less what was prompted, over prompts of every
    network: their mean over networks and its spread. Looking up knows only what was learned from.
    `hole_share_hit` is of the networks that were prompted inside and whose test metric is inside.
    """
    prompted, column = generator.origin.prompted, f"test_{generator.metric}"
    prompts = prompts_around(generator, hole)
    made = same_prompts(generator, task, theta, prompts, seed=seed)
    seen = outside(training, prompted, hole)
    looked_up = retrieval(prompts.unsqueeze(0), seen[prompted], seen)[column][0]
    within = inside(prompts, hole)
    error = made[column] - prompts
    inner, outer = (error[:, chosen].square().mean(1).sqrt() for chosen in (within, ~within))  # (N,)
    numbers = {
        "hole_low": hole[0],
        "hole_high": hole[1],
        "hole_left_out": len(training[prompted]) - len(seen[prompted]),
        "hole_error": float(inner.mean()),
        "hole_error_std_over_networks": float(inner.std(correction=0)),
        "hole_error_beside": float(outer.mean()),
        "hole_error_beside_std_over_networks": float(outer.std(correction=0)),
        "hole_error_retrieval": float((looked_up - prompts)[within].square().mean().sqrt()),
        "hole_share_hit": float(inside(made[column][:, within], hole).float().mean()),
    }
    arrays = {"hole_prompts": prompts, "hole_retrieved": looked_up}
    return numbers, arrays | {f"hole_{name}": values for name, values in made.items()}
