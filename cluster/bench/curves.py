"""Learning curves of policies: what they return after how many steps of the environment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ckpt_factory import RunPlan, make
from ckpt_factory.tasks.registry import with_options
from rl_tasks.curves import facts, learning_curves
from rl_tasks.plots import curves_picture
from rl_tasks.tasks import PolicyTask

from ..factory_config import PRESETS
from ..progress import say
from ..tables import print_table
from .benchmark import BenchConfig, benchmark, check_positive

PICTURE = "learning_curves.png"
EPISODES = 32
"""Test episodes that every policy on a curve is measured by."""


class Panel(NamedTuple):
    """An environment: what counts as good there, and what is learnt by, (task, plan) by name."""

    target: float
    recipes: dict[str, tuple[str, RunPlan]]


@dataclass(frozen=True, kw_only=True)
class CurvesBenchConfig(BenchConfig):
    """PPO and evolution strategies on CartPole and Pendulum: return by steps of the environment, as a table
    and a picture."""

    out: Path = Path("runs/bench")
    """Folder for result.json and the picture."""
    runs: int = 32
    """Runs of each algorithm, each with its own seed."""

    def __post_init__(self) -> None:
        check_positive(self, "runs")


def panels() -> dict[str, Panel]:
    """PPO as in the presets, and evolution strategies, by environment."""
    cartpole, pendulum = PRESETS["cartpole"](), PRESETS["pendulum"]()
    evolution = {
        "cartpole": evolution_plan(num_steps=60, batch_size=32, lr=2.0, sigma=0.3),
        "pendulum": evolution_plan(num_steps=200, batch_size=64, lr=0.5, sigma=0.1),
    }
    return {
        "CartPole-v1": Panel(
            475.0,
            {
                "PPO": (cartpole.task, cartpole.plan),
                "evolution strategies": (
                    "rl_tasks:cartpole-v0?algorithm=es&activation=tanh",
                    evolution["cartpole"],
                ),
            },
        ),
        "Pendulum-v1": Panel(
            -200.0,
            {
                "PPO": (pendulum.task, pendulum.plan),
                "evolution strategies": (
                    "rl_tasks:pendulum-v0?algorithm=es&activation=tanh",
                    evolution["pendulum"],
                ),
            },
        ),
    }


def evolution_plan(*, num_steps: int, batch_size: int, lr: float, sigma: float) -> RunPlan:
    """Evolution strategies with Adam; `lr` is as of SGD."""
    return RunPlan(
        num_steps=num_steps,
        batch_size=(batch_size,),
        optimizer=("adamw",),
        lr=(lr, lr),
        weight_decay=(0.0, 0.0),
        hyper={"sigma": (sigma, sigma)},
        num_checkpoints=2,
    )


def bench_curves(config: CurvesBenchConfig) -> dict[str, Any]:
    """Train stacks of runs by each algorithm, measure them all along, and draw it."""
    found: dict[str, dict[str, Any]] = {}
    for env_id, panel in panels().items():
        found[env_id] = {"target": panel.target, "algorithms": {}}
        for name, (task_id, plan) in panel.recipes.items():
            say(f"{env_id}: {config.runs} runs by {name}")
            task = make(with_options(task_id, episodes=EPISODES))
            assert isinstance(task, PolicyTask)
            curves = learning_curves(task, plan, range(config.runs))
            found[env_id]["algorithms"][name] = facts(curves, panel.target) | {"task": task_id}
    by_row = {
        f"{env_id}, {name}": (panel["target"], each)
        for env_id, panel in found.items()
        for name, each in panel["algorithms"].items()
    }
    print_table(
        {
            row: {
                "good": target,
                "env-steps to it": each["env_steps_to_target"],
                "% of runs": 100 * each["runs_that_reached_it"] / each["runs"],
                "last return": each["final_return"],
                "CPU s/run": each["cpu_s_per_run"],
            }
            for row, (target, each) in by_row.items()
        },
        f"learning curves of {config.runs} runs each",
        f"Steps of the environment until a run's mean return over {EPISODES} test episodes was first good, "
        "median over runs; sampled actions. Measuring is left out of the CPU time.",
    )
    picture = config.out / PICTURE
    curves_picture(found, picture)
    say(f"picture: {picture}")
    headline = {
        f"{row}: env_steps to {target:g}": each["env_steps_to_target"]
        for row, (target, each) in by_row.items()
    }
    return headline | {"picture": str(picture), "environments": found}


COMMAND = benchmark(
    CurvesBenchConfig,
    bench_curves,
    examples="theta bench curves\ntheta bench curves --runs 16 --out runs/bench-curves",
)
