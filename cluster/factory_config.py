"""FactoryConfig: what zoo to make, and the presets of `theta make`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ckpt_factory import RunPlan


@dataclass(frozen=True, kw_only=True)
class FactoryConfig:
    """What zoo to make."""

    task: str = "digits-mlp-v0"
    """Id of the learning problem: digits-mlp-v0, mnist-mlp-v0, cifar-cnn-v0; images-mlp-v0 and images-cnn-v0
    for a folder of your own images; policies rl_tasks:cartpole-v0, rl_tasks:acrobot-v0,
    rl_tasks:mountaincar-continuous-v0, rl_tasks:pendulum-v0, and rl_tasks:gym-v0 with --env; quadratic-v0, a
    bowl that needs no data, to try things on; `module:id` for one of your own."""
    env: str | None = None
    """Id of the environment, for tasks with such an option (rl_tasks:gym-v0): Gymnasium's, `module:id` for
    one of your own."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the task, NAME VALUE NAME VALUE, on top of those in its id (`id?name=value`)."""
    out: Path = Path("runs/zoo")
    """Folder of the zoo. The same command again resumes it."""
    data_root: Path | None = None
    """Where the task's images are: Parquet files in the Hugging Face layout, or torchvision's folder."""
    num_runs: int = 2048
    """Training runs."""
    stack_size: int = 128
    """Runs trained in lock-step by one actor: one unit of work, one shard."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How parameters are stored; metrics are measured on the stored values."""
    plan: RunPlan = field(default_factory=RunPlan)
    """The recipe of the runs."""
    repair: bool = False
    """First look for damaged shards, and make those anew."""
    use_gpu: bool = False
    """Give every actor a GPU: its stacks train there; ask for stacks of a thousand runs or more. Not for
    policies, whose environments are on the CPU."""

    def __post_init__(self) -> None:
        if self.env is not None and "env" in self.options:
            raise ValueError(f"env is {self.env!r} and {self.options['env']!r} in options; give it once")


def digits() -> FactoryConfig:
    """2,048 runs on scikit-learn's digits: 450 steps of batch 32, 35 checkpoints."""
    return FactoryConfig()


def mnist() -> FactoryConfig:
    """3,000 runs of the published MNIST network, 2 epochs of batch 128, 30 checkpoints."""
    plan = RunPlan(num_steps=780, batch_size=(128,), group_size=10, num_checkpoints=30)
    return FactoryConfig(task="mnist-mlp-v0", num_runs=3000, stack_size=60, plan=plan)


def cifar() -> FactoryConfig:
    """1,000 runs of the published CIFAR-10 network, 1 epoch of batch 128, 10 checkpoints: over an hour."""
    plan = RunPlan(
        num_steps=352,
        batch_size=(128,),
        group_size=5,
        num_checkpoints=10,
        spacing="uniform",  # of log-spaced steps most come before the loss has fallen by a tenth
        precision="bfloat16",
    )
    return FactoryConfig(task="cifar-cnn-v0", num_runs=1000, stack_size=5, plan=plan)


def published() -> FactoryConfig:
    """The published MNIST recipe, 11,700 steps, 200 checkpoints: only the seed varies."""
    plan = RunPlan(
        num_steps=11_700,
        batch_size=(128,),
        schedule_every=468,
        group_size=16,
        num_checkpoints=200,
        spacing="random",
        precision="bfloat16",
        compile=True,
    )
    return FactoryConfig(task="mnist-mlp-v0", num_runs=1024, stack_size=64, plan=plan)


def diverse() -> FactoryConfig:
    """4,096 runs on digits of many recipes: optimizers, rates, initialisations, losses, label noise."""
    plan = RunPlan(
        optimizer=("sgd", "adamw", "lion", "tiger", "amos"),
        batch_size=(16, 32, 64),
        lr=(0.02, 0.15),
        weight_decay=(1e-5, 1e-2),
        momentum=(0.8, 0.95),
        init=("default", "kaiming", "xavier", "orthogonal"),
        init_scale=(0.5, 1.5),
        label_noise=(0.0, 0.3),
        data_fraction=(0.5, 1.0),
        loss=("cross-entropy", "tailr"),
        gamma=(0.05, 0.3),
        block_size=16,
        spacing="metric",
    )
    return FactoryConfig(num_runs=4096, plan=plan)


def smoke() -> FactoryConfig:
    """64 short runs on digits: a zoo in seconds, to see that all works."""
    return FactoryConfig(num_runs=64, stack_size=16, plan=RunPlan(num_steps=100, num_checkpoints=12))


def cartpole() -> FactoryConfig:
    """10,000 CartPole policies trained by PPO for 41,000 steps of the environment, 50 checkpoints."""
    plan = RunPlan(
        num_steps=640,
        batch_size=(128,),
        optimizer=("adamw",),
        lr=(0.15, 0.15),
        weight_decay=(0.0, 0.0),
        hyper=_fixed(discount=0.99, gae_lambda=0.98, clip=0.3, value_lr=0.015, max_grad_norm=0.3),
        num_checkpoints=50,
        spacing="metric",
    )
    task = "rl_tasks:cartpole-v0?epochs=2"
    return FactoryConfig(task=task, num_runs=10_000, plan=plan)


def pendulum() -> FactoryConfig:
    """4,096 Gaussian Pendulum policies trained by PPO for 61,000 steps of the environment, 50 checkpoints."""
    plan = RunPlan(
        num_steps=1920,
        batch_size=(128,),
        optimizer=("adamw",),
        lr=(0.1, 0.1),
        weight_decay=(0.0, 0.0),
        hyper=_fixed(discount=0.9, value_lr=0.01),
        num_checkpoints=50,
        spacing="metric",
    )
    task = "rl_tasks:pendulum-v0?activation=relu&hidden=32&copies=16&epochs=4"
    return FactoryConfig(task=task, num_runs=4096, plan=plan)


def mountaincar_continuous() -> FactoryConfig:
    """1,024 MountainCarContinuous policies by evolution strategies, 40 steps, 20 checkpoints."""
    plan = RunPlan(
        num_steps=40,
        batch_size=(32,),
        optimizer=("adamw",),
        lr=(1.0, 1.0),
        weight_decay=(0.0, 0.0),
        hyper=_fixed(sigma=0.3),
        num_checkpoints=20,
        spacing="metric",
    )
    # PPO sees the goal by chance alone, and half of its runs learn to stand still before they do.
    task = "rl_tasks:mountaincar-continuous-v0?activation=tanh&algorithm=es&trials=1"
    return FactoryConfig(task=task, num_runs=1024, stack_size=64, plan=plan)


def gym() -> FactoryConfig:
    """64 policies, by PPO, for an environment of Gymnasium's or your own: give --env ID or module:ID."""
    plan = RunPlan(
        num_steps=1280,
        batch_size=(128,),
        optimizer=("adamw",),
        lr=(0.05, 0.05),
        weight_decay=(0.0, 0.0),
        num_checkpoints=20,
    )
    return FactoryConfig(task="rl_tasks:gym-v0", num_runs=64, stack_size=16, plan=plan)


def _fixed(**values: float) -> dict[str, tuple[float, float]]:
    return {name: (value, value) for name, value in values.items()}


PRESETS = {
    each.__name__: each
    for each in (
        digits,
        mnist,
        cifar,
        published,
        diverse,
        smoke,
        cartpole,
        pendulum,
        mountaincar_continuous,
        gym,
    )
}
