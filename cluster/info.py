"""What is in a zoo, at a glance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_factory.card import zoo_summary
from ckpt_factory.zoo import Zoo


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Which zoo to describe."""

    zoo: Path = Path("zoo")
    """The zoo."""
    out: Path | None = None
    """Folder for result.json; default info/ inside the zoo."""


def info(config: InfoConfig) -> dict[str, Any]:
    """Task, runs, checkpoints, bytes, recipe and metrics of a zoo as plain numbers."""
    zoo = Zoo.open(config.zoo)
    summary = zoo_summary(zoo)
    finals = summary.pop("final")
    plan = zoo.header.plan
    recipe = {
        name: getattr(plan, name) for name in ("num_steps", "batch_size", "group_size", "seed", "schedule")
    }
    ranges = {
        name: "{:g} to {:g}".format(*getattr(plan, name)) for name in ("lr", "weight_decay", "init_scale")
    }
    metrics = {
        f"final_{name}": f"{v['min']:.4f} | {v['median']:.4f} | {v['max']:.4f}" for name, v in finals.items()
    }
    return summary | recipe | ranges | metrics
