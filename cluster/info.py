"""What is in a zoo, at a glance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_factory.card import PICTURE, recipe_facts, zoo_summary
from ckpt_factory.files import check_writable
from ckpt_factory.plots import coverage, sparkline, zoo_picture
from ckpt_factory.zoo import Zoo

from .command import Command


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Which zoo to describe."""

    zoo: Path = Path("runs/zoo")
    """The zoo."""
    out: Path = Path("runs/info")
    """Folder for result.json."""


def info(config: InfoConfig) -> dict[str, Any]:
    """Task, runs, checkpoints, bytes, recipe and metrics of a zoo: counts and `final` as plain numbers, the
    rest as text."""
    zoo = Zoo.open(config.zoo)
    if damaged := zoo.unreadable_units():
        raise ValueError(damaged[0])
    summary = zoo_summary(zoo)
    recipe = recipe_facts(zoo.header.plan, zoo.read_runs())
    finals = {
        f"final_{name}": f"{each['median']:.4g} (median), {each['min']:.4g} to {each['max']:.4g}"
        for name, each in summary["final"].items()
        if not name.endswith("_episodes")
    }
    edges, counts = coverage(zoo)
    _, tenths = coverage(zoo, 10)
    zoo_picture(zoo, config.out / PICTURE)
    shown = {
        "coverage": f"{sparkline(counts)}  {zoo.header.prompted} {edges[0]:.3g} to {edges[-1]:.3g}",
        "coverage_of_tenths": ", ".join(f"{100 * n / max(1, sum(tenths)):.0f}" for n in tenths) + " %",
        "picture": str(config.out / PICTURE),
    }
    return summary | shown | {name.replace(" ", "_"): text for name, text in recipe.items()} | finals


def _check(config: InfoConfig) -> None:
    Zoo.open(config.zoo)
    check_writable(config.out)


COMMAND = Command(
    InfoConfig,
    lambda config: (info(config), config.out, 0),
    check=_check,
    starts_ray=False,
    examples="theta info --zoo runs/zoo",
)
