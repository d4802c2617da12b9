"""What `theta train` is asked for, and its presets."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from generator.gpt.recipe import published_training
from generator.model.dit import DiTConfig, TokensName
from generator.sampling.samplers import SamplerName, Sampling, Trajectory
from generator.training.hole import Hole
from generator.training.scales import ScalesName
from generator.training.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What to train, on what."""

    zoo: Path = Path("runs/zoo")
    """The zoo to learn from."""
    out: Path = Path("runs/generator")
    """Folder of the artefact. The same command again resumes a training that was killed."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""
    held_out: float = 0.1
    """Share of the runs, by whole groups, that is never trained on."""
    metrics: tuple[str, ...] = ()
    """Metrics that networks may be prompted for, any of them alone or together, as in `--metrics loss error`;
    default the zoo's own, which has to be among them. Calibration, a hole, the audit and all other parts of
    an evaluation are about that one, prompted alone; with gpt as tokens there is no other. In training each
    choice of at least one of them is prompted equally often, and the others are hidden."""
    rank: int = 128
    """Directions of the inputs that incoming weights are kept in (function-space coordinates); 0: all, as
    they are."""
    hidden_space: bool = False
    """Function-space coordinates in layers that read hidden units, too: by what these say along training
    runs, whichever of them is which."""
    scales: ScalesName | None = None
    """What networks and updates are divided by: a number for every tensor, or a single one for all
    coordinates, as published. Default: tensor, with tokens gpt single."""
    num_workers: int = 2
    """Training processes, one CPU each."""
    use_gpu: bool = False
    """Give every training process a GPU."""
    reservoir_gib: float = 2.0
    """Memory for runs per worker; a zoo that fits is held there whole, of a larger one a moving window."""
    sampling_steps: int = 10
    """Sampling steps of an update, unless told otherwise when prompted. One gives the mean of the networks
    that fit, always the same: best for returns; many give samples."""
    sampler: SamplerName = "ddpm"
    """Ancestral (ddpm), deterministic (ddim, dpm-solver++) or analytic sampling, unless told otherwise."""
    trajectory: Trajectory = "even"
    """Sampling steps even in time or optimal by what the model misses, unless told otherwise."""
    guidance: float = 1.0
    """How far prompts are followed, unless told otherwise; others than 1 need --prompt-dropout."""
    moments: int = 0
    """Pairs at each of 32 times that it is measured on, when the training is over, how uncertain predictions
    are, which analytic samplers and optimal trajectories need to know: 512 is enough. Half of the held-out
    runs are used up for it. 0: it is not measured; `theta moments` does so later."""
    calibrate: int = 0
    """Training initialisations that prompts are calibrated on when the training is over: networks are made
    for 40 metrics from each, and measured on the validation split. 0: prompts are asked for as they are."""
    hole: Hole | None = None
    """Leave out of the training, as targets and as starts, every checkpoint whose prompted metric, on the
    validation split, lies between LOW and HIGH: `theta evaluate` then prompts inside the hole, whether what
    was never seen can be made."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """The training itself."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; expected a share between 0 and 1")
        if self.rank < 0 or self.num_workers < 1 or not 0 < self.reservoir_gib < math.inf:
            raise ValueError(
                f"rank {self.rank} must not be negative, num_workers {self.num_workers} at least 1, "
                f"reservoir_gib {self.reservoir_gib} positive and finite"
            )
        if self.calibrate < 0 or self.moments < 0:
            raise ValueError(
                f"calibrate is {self.calibrate}, moments {self.moments}; expected neither to be negative"
            )
        if self.hole is not None and not self.hole[0] < self.hole[1]:
            raise ValueError(f"hole is {self.hole}; expected two metrics, LOW < HIGH")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics are {', '.join(self.metrics)}; expected each once")
        self.check_tokens(self.training.model.tokens)
        if self.training.model.prompt_dropout and len(self.metrics) > 1:
            raise ValueError(
                f"prompt_dropout is {self.training.model.prompt_dropout} with metrics "
                f"{', '.join(self.metrics)}, which are left out at random as it is, but never all of them; "
                "expected 0, or one metric"
            )
        if self.guidance != 1 and not self.training.model.prompt_dropout:
            raise ValueError(
                f"guidance is {self.guidance} without prompt dropout; expected 1, or prompts dropped in "
                "training, like --prompt-dropout 0.1"
            )
        if self.sampling.needs_moments and not self.moments:
            raise ValueError(
                f"sampler {self.sampler} on an {self.trajectory} trajectory needs to know how uncertain "
                "predictions are; have it measured with --moments 512"
            )

    def check_tokens(self, tokens: TokensName) -> None:
        """Refuse tokens of a model that knows no more than one metric."""
        if tokens == "gpt" and len(self.metrics) > 1:
            raise ValueError(
                f"metrics are {', '.join(self.metrics)} with tokens 'gpt', the published model, which knows "
                "one; give one of them, or other tokens"
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            steps=self.sampling_steps,
            sampler=self.sampler,
            trajectory=self.trajectory,
            guidance=self.guidance,
        )


def digits() -> GeneratorConfig:
    """For the digits zoo: three minutes on two cores, then prompts are calibrated."""
    training = TrainConfig(steps=100_000, time_budget_s=180.0)
    return GeneratorConfig(sampling_steps=5, sampler="ddim", calibrate=64, training=training)


def mnist() -> GeneratorConfig:
    """For the MNIST zoo: 25 minutes on two cores, then prompts are calibrated."""
    model = DiTConfig(time_shift=8.0)
    training = TrainConfig(model=model, steps=1_000_000, time_budget_s=1500.0, lr=3e-3, weight_decay=0.5)
    return GeneratorConfig(sampling_steps=3, sampler="ddim", calibrate=64, training=training)


def cifar() -> GeneratorConfig:
    """For the CIFAR-10 zoo: 25 minutes on two cores, then prompts are calibrated."""
    training = TrainConfig(steps=1_000_000, time_budget_s=1500.0, behaviour_examples=16)
    return GeneratorConfig(
        hidden_space=True, sampling_steps=5, sampler="ddim", calibrate=16, training=training
    )


def policies() -> GeneratorConfig:
    """For a zoo of policies: 25 minutes on two cores, then prompts are calibrated."""
    training = TrainConfig(steps=1_000_000, time_budget_s=1500.0)
    return GeneratorConfig(sampling_steps=1, sampler="ddim", calibrate=128, training=training)


def gpt_digits() -> GeneratorConfig:
    """The published transformer on the digits zoo, to compare with: 30 minutes on two cores."""
    return GeneratorConfig(
        rank=0, sampling_steps=1000, sampler="published", training=published_training(time_budget_s=1800.0)
    )


def smoke() -> GeneratorConfig:
    """A few hundred steps of a small model, to see that all works."""
    training = TrainConfig(model=DiTConfig(width=32, depth=2), steps=200, batch_size=64, warmup_steps=10)
    return GeneratorConfig(num_workers=1, training=training)


PRESETS = {
    "digits": digits,
    "mnist": mnist,
    "cifar": cifar,
    "policies": policies,
    "gpt-digits": gpt_digits,
    "smoke": smoke,
}
