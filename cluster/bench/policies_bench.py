"""Benchmarks of policies: what steps, good policies and whole learning curves cost."""

from pathlib import Path
from typing import Any, NamedTuple

from ckpt_factory import RunPlan, make
from ckpt_factory.tasks.registry import with_options
from rl_tasks.bench import measure_learning, measure_steps
from rl_tasks.curves import facts, learning_curves
from rl_tasks.plots import curves_picture
from rl_tasks.tasks import PolicyTask

from ..factory_config import PRESETS
from ..progress import say
from ..tables import print_table

PICTURE = "learning_curves.png"
EPISODES = 32
"""Test episodes that every policy on a curve is measured by."""


class Panel(NamedTuple):
    """An environment: what counts as good there, and what is learnt by, (task, plan) by name."""

    target: float
    recipes: dict[str, tuple[str, RunPlan]]


def bench_rl(repeats: int, seconds: float) -> dict[str, Any]:
    """Measure steps of the environment, then whole trainings, each beside its alternatives."""
    recipe = PRESETS["cartpole"]()
    task = make(recipe.task)
    assert isinstance(task, PolicyTask)
    found = measure_steps(task, repeats=repeats, seconds=seconds)
    fastest = max(found["env_steps_per_cpu_s"].values())
    print_table(
        {
            name: {"env-steps/CPU s": rate, "ours x": fastest / rate}
            for name, rate in found["env_steps_per_cpu_s"].items()
        },
        "CartPole-v1: steps of the environment with a policy 4-32-32-2",
        "Acting included, one thread.",
    )
    say("training policies to a mean return of 475, ours and Stable-Baselines3's in turns")
    learning = measure_learning(task, recipe.plan, repeats=repeats)
    print_table(
        {name: {"CPU s": value} for name, value in learning["cpu_s_per_good_policy"].items()},
        f"a policy of return 475: {learning['times_stable_baselines3']:.3g} times cheaper",
        "CPU s to a mean return of 475 over 16 episodes, measuring left out. Ours: 256 policies trained "
        "together until nine in ten are as good, per good policy. Stable-Baselines3: PPO with its own "
        "tuning for CartPole-v1, one policy.",
    )
    return found | {"learning": learning, "times_stable_baselines3": learning["times_stable_baselines3"]}


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


def bench_curves(runs: int, out: Path) -> dict[str, Any]:
    """Train stacks of runs by each algorithm, measure them all along, and draw it."""
    found: dict[str, dict[str, Any]] = {}
    for env_id, panel in panels().items():
        found[env_id] = {"target": panel.target, "algorithms": {}}
        for name, (task_id, plan) in panel.recipes.items():
            say(f"{env_id}: {runs} runs by {name}")
            task = make(with_options(task_id, episodes=EPISODES))
            assert isinstance(task, PolicyTask)
            curves = learning_curves(task, plan, range(runs))
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
        f"learning curves of {runs} runs each",
        f"Steps of the environment until a run's mean return over {EPISODES} test episodes was first good, "
        "median over runs; sampled actions. Measuring is left out of the CPU time.",
    )
    curves_picture(found, out / PICTURE)
    say(f"picture: {out / PICTURE}")
    headline = {
        f"{row}: env_steps to {target:g}": each["env_steps_to_target"]
        for row, (target, each) in by_row.items()
    }
    return headline | {"picture": str(out / PICTURE), "environments": found}
