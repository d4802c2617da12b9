"""The model card written into a generator's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .artefact import CONFIG, WeightGenerator
from .gpt.released import RELEASES, ReleaseName, Weights


def how_sampled(generator: WeightGenerator) -> str:
    """Sampling and calibration, in a line."""
    sampling, calibration = generator.sampling, generator.calibration
    line = f"{sampling.sampler}, {sampling.steps} step{'s' if sampling.steps > 1 else ''}"
    if sampling.trajectory != "even":
        line += f" on an {sampling.trajectory} trajectory"
    if sampling.guidance != 1:
        line += f", guidance {sampling.guidance:g}"
    if calibration is None:
        return line
    low, high = (float(calibration.got[i]) for i in (0, -1))
    line += f"; prompts calibrated on training starts, which got {low:.4g} to {high:.4g}"
    return line if calibration.stretch == 1 else f"{line} with updates {calibration.stretch:g} times as long"


def _hole(generator: WeightGenerator) -> str:
    hole = generator.origin.hole
    return f"; between {hole[0]:.4g} and {hole[1]:.4g} nothing was learned from" if hole else ""


def _further_metrics(generator: WeightGenerator) -> str:
    """A row for every metric but the main one."""
    rows = []
    for name in generator.metrics[1:]:
        low, high = generator.range_of(name)
        what = (
            f"{generator.column_of(name)}, {generator.objective_of(name)}; seen from {low:.4g} to {high:.4g}"
        )
        rows.append(f"| or, alone or together | {what} |\n")
    return "".join(rows)


def save_changed(generator: WeightGenerator, source: Path, out: Path) -> None:
    """Write a generator that was loaded from `source` and changed since: what its training was stays."""
    training = json.loads((source / CONFIG).read_text())["training"]
    if generator.origin.released:
        card = released_card(generator, training["model"], training["weights"], training.get("zoo", ""))
    else:
        card = model_card(generator, training)
    generator.save(out, training=training, card=card)


def released_card(generator: WeightGenerator, name: ReleaseName, weights: Weights, zoo: str = "") -> str:
    """README.md of an imported generator.

    Args:
        zoo: path of the one that it is to be judged on; empty where there is none.
    """
    origin, config = generator.origin, generator.model.config
    low, high = generator.scaling.metric_range
    judged = "nothing yet: import it again with --zoo, so that evaluations know which runs are held out"
    if zoo:
        judged = f"zoo {zoo}, runs with ids from {origin.num_training_runs}: {origin.held_out_means}"
    return f"""# The published {name} model (Peebles et al. 2022), imported

Given a network, its {origin.prompted} and a prompted one, it makes the updated network in one update.

| | |
|---|---|
| task | {origin.task}, {generator.coordinates.spec.D:,} parameters a network |
| metric | {origin.prompted}, {origin.objective}; published prompts and starts from {low:.4g} to {high:.4g} |
| model | Gpt, width {config.width}, depth {config.depth}, \
{sum(p.numel() for p in generator.model.parameters()):,} parameters |
| weights | {"their exponential moving average" if weights == "ema" else "the last ones, not averaged"} |
| trained on | {RELEASES[name].num_training_runs:,} runs of its authors, conditioned on test metrics |
| judged on | {judged} |
| sampling | {how_sampled(generator)} |
"""


def model_card(generator: WeightGenerator, training: Mapping[str, Any]) -> str:
    """README.md of a generator: what it makes, from what it learned, how to use it, what it cannot do."""
    origin, scaling, config = generator.origin, generator.scaling, generator.model.config
    low, high = scaling.metric_range
    return f"""# Generator of {origin.task} networks

Given a network, its {origin.prompted} and a prompted one, it makes the updated network in one update.

| | |
|---|---|
| task | {origin.task}, {generator.coordinates.spec.D:,} parameters a network |
| input | {origin.inputs or "as the task gives it"} |
| metric | {origin.prompted}, {origin.objective}; \
seen from {low:.4g} to {high:.4g}, prompts outside are extrapolation{_hole(generator)} |
{_further_metrics(generator)}| tokens | {config.tokens} |
| model | {type(generator.model).__name__}, width {config.width}, depth {config.depth}, \
{training["parameters"]:,} parameters |
| diffusion | {config.prediction} prediction, {config.path} path, condition by {config.condition} |
| coordinates | {generator.coordinates.words} |
| sampling | {how_sampled(generator)} |
| trained on | {training["training_runs"]:,} runs \
({training["held_out_runs"]:,} more are held out, ids from {origin.num_training_runs}) |
| training | {training["steps"]:,} steps, {training["pairs"]:,} pairs, {training["train_s"]:.0f} s |

## Use it
```python
import torch
from ckpt_factory import make
from generator.artefact import WeightGenerator

generator = WeightGenerator.load(".")
task = make("{origin.task}")                      # data_root=... for tasks whose images are on disk
rng = torch.Generator().manual_seed(0)
theta = task.init([rng] * 4)                      # four fresh networks, (4, {generator.coordinates.spec.D})
metric = task.evaluate(theta, "validation")["{generator.metric}"]
prompt = torch.full((4,), {generator.best_metric:.4g})
updated = generator.update(theta, metric, prompt, rng=rng)
state_dict = task.spec.unflatten(updated[0])      # loads into the plain torch module
```

## Limits
It knows one architecture and the recipe of its zoo. Look at the report's controls before you believe that it
generates: prompt alignment is also reached by returning the training checkpoint of the nearest metric.
"""
