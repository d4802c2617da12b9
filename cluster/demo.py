"""The whole job on an embedded default: one command from nothing to a report."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ckpt_factory.files import check_writable

from . import evaluate, factory, factory_config, report, train, train_config
from .command import Command
from .progress import say
from .result import write_result


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The four stages on scikit-learn's digits."""

    out: Path = Path("thetaforge-demo")
    """Folder for zoo, generator, evaluation and report. The same command again resumes it."""
    num_runs: int = 2048
    """Training runs of the zoo."""
    train_s: float = 150.0
    """Seconds of training the generator."""
    num_networks: int = 64
    """Held-out initialisations to evaluate on."""
    num_seeds: int = 3
    """Repetitions of the evaluation with other sampling noise."""

    def __post_init__(self) -> None:
        for name, least in (("num_runs", 20), ("num_networks", 1), ("num_seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 < self.train_s < math.inf:
            raise ValueError(f"train_s is {self.train_s}; expected a positive number of seconds")


def full() -> DemoConfig:
    """The default: under four minutes on two cores."""
    return DemoConfig()


def smoke() -> DemoConfig:
    """The same path in about a minute, too short for good networks."""
    return DemoConfig(num_runs=256, train_s=10, num_networks=16, num_seeds=1)


PRESETS = {"full": full, "smoke": smoke}


def demo(config: DemoConfig) -> dict[str, Any]:
    """Zoo, generator, evaluation and report in one folder; returns the headline numbers."""
    started = time.monotonic()
    check_writable(config.out)
    zoo, generator, evaluation = (config.out / name for name in ("zoo", "generator", "evaluation"))
    zoo_config = dataclasses.replace(factory_config.digits(), out=zoo, num_runs=config.num_runs)
    say("1/4 zoo: training networks on scikit-learn's digits")
    made = factory.CheckpointFactory(zoo_config).fit()
    if made.error:
        raise ValueError(f"the zoo is incomplete: {made.error}")
    say("2/4 generator: learning from the zoo")
    defaults = train_config.digits()
    workers = max(1, min(defaults.num_workers, int(ray.cluster_resources().get("CPU", 1))))
    training = dataclasses.replace(defaults.training, time_budget_s=config.train_s)
    trained = train.fit(
        dataclasses.replace(defaults, zoo=zoo, out=generator, num_workers=workers, training=training)
    )
    say("3/4 evaluation: prompting networks from initialisations never seen")
    evaluated = evaluate.evaluate(
        evaluate.EvaluateConfig(
            generator=generator,
            zoo=zoo,
            out=evaluation,
            num_networks=config.num_networks,
            num_seeds=config.num_seeds,
        )
    )
    write_result(evaluation, evaluated)
    say("4/4 report")
    written = report.report(
        report.ReportConfig(zoo=zoo, generator=generator, evaluation=evaluation, out=config.out)
    )
    shown = ("runs", "checkpoints", "runs_per_cpu_s")
    return (
        {f"zoo_{name}": made.metrics[name] for name in shown}
        | {"generator_parameters": trained["parameters"], "train_s": trained["train_s"]}
        | {f"train_{name}": trained[name] for name in ("pairs", "pairs_per_s")}
        | {name: value for name, value in evaluated.items() if name != "wall_s"}
        | {"report": written["report"], "wall_s": time.monotonic() - started}
    )


COMMAND = Command(
    DemoConfig,
    lambda config: (demo(config), config.out, 0),
    presets=PRESETS,
    check=lambda config: check_writable(config.out),
    resumes=True,
    examples="theta demo\ntheta demo --preset smoke --out /tmp/smoke",
)
