"""The loss TaiLr against cross-entropy where some training labels are wrong."""

from dataclasses import dataclass
from typing import Any

from ckpt_factory import RunPlan, make
from ckpt_factory.bench import label_noise_experiment
from ckpt_factory.tasks import MLPClassifier

from ..progress import say
from ..tables import print_table
from .benchmark import BenchConfig, benchmark, check_filled, check_positive


@dataclass(frozen=True, kw_only=True)
class TailrBenchConfig(BenchConfig):
    """Accuracy and calibration of digits networks under wrong labels, cross-entropy against TaiLr."""

    noises: tuple[float, ...] = (0.0, 0.2, 0.4)
    """Shares of wrong training labels."""
    gammas: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    """TaiLr's gammas; 0 is cross-entropy."""
    runs_per_setting: int = 64
    """Runs of each share and gamma, all from the same initialisations."""

    def __post_init__(self) -> None:
        check_positive(self, "runs_per_setting")
        check_filled(self, "noises", "gammas")


def bench_tailr(config: TailrBenchConfig) -> dict[str, Any]:
    """Train digits networks on wrong labels and measure them on right ones."""
    task, plan, rows = make("digits-mlp-v0"), RunPlan(), []
    assert isinstance(task, MLPClassifier)
    for noise in config.noises:
        for gamma in config.gammas:
            rows.append(label_noise_experiment(task, plan, noise, gamma, config.runs_per_setting))
            say(f"{100 * noise:.0f} % wrong labels, gamma {gamma:g}: {rows[-1]['test_accuracy']:.3f}")
    print_table(
        {
            f"{100 * row['label_noise']:.0f} % wrong, gamma {row['gamma']:g}": {
                "accuracy": row["test_accuracy"],
                "std": row["test_accuracy_std"],
                "ECE": row["test_ece"],
                "ECE std": row["test_ece_std"],
                "loss": row["test_loss"],
            }
            for row in rows
        },
        "TaiLr under label noise: digits-mlp-v0, test split",
        f"Mean and standard deviation over {config.runs_per_setting} runs; gamma 0 is cross-entropy. ECE: "
        "expected calibration error, 15 bins.",
    )
    return {"settings": rows}


COMMAND = benchmark(
    TailrBenchConfig,
    bench_tailr,
    examples="theta bench tailr\ntheta bench tailr --noises 0.2 --gammas 0 0.1 0.2 --runs-per-setting 256",
)
