"""What steps of an environment and good policies cost, beside the usual loops and Stable-Baselines3."""

from dataclasses import dataclass
from typing import Any

from ckpt_factory import make
from rl_tasks.bench import measure_learning, measure_steps
from rl_tasks.tasks import PolicyTask

from ..factory_config import PRESETS
from ..progress import say
from ..tables import print_table
from .benchmark import RepeatedConfig, benchmark, check_positive


@dataclass(frozen=True, kw_only=True)
class RLBenchConfig(RepeatedConfig):
    """Steps of CartPole, and CPU seconds to a good policy, against the usual loops and Stable-Baselines3."""

    seconds: float = 0.5
    """CPU seconds of one measurement of steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "seconds")


def bench_rl(config: RLBenchConfig) -> dict[str, Any]:
    """Measure steps of the environment, then whole trainings, each beside its alternatives."""
    recipe = PRESETS["cartpole"]()
    task = make(recipe.task)
    assert isinstance(task, PolicyTask)
    found = measure_steps(task, repeats=config.repeats, seconds=config.seconds)
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
    learning = measure_learning(task, recipe.plan, repeats=config.repeats)
    print_table(
        {name: {"CPU s": value} for name, value in learning["cpu_s_per_good_policy"].items()},
        f"a policy of return 475: {learning['times_stable_baselines3']:.3g} times cheaper",
        "CPU s to a mean return of 475 over 16 episodes, measuring left out. Ours: 256 policies trained "
        "together until nine in ten are as good, per good policy. Stable-Baselines3: PPO with its own "
        "tuning for CartPole-v1, one policy.",
    )
    return found | {"learning": learning, "times_stable_baselines3": learning["times_stable_baselines3"]}


COMMAND = benchmark(
    RLBenchConfig,
    bench_rl,
    examples="theta bench rl\ntheta bench rl --repeats 1 --out runs/bench-rl",
)
