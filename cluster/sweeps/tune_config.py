"""What a sweep is: which trainings, over which values, searched and stopped how."""

from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from generator.model.dit import DiTConfig, TokensName
from generator.model.sizes import SizeName
from generator.training.train import TrainConfig

from ..train_config import GeneratorConfig


@dataclass(frozen=True, kw_only=True)
class TuneConfig(GeneratorConfig):
    """What to train in how many ways; everything that is not swept is as for `theta train`."""

    out: Path = Path("runs/tune")
    """Folder of the sweep: table, plots, page, every trial's generator. The same command again resumes it."""
    num_workers: int = 1
    """Training processes of a trial, one CPU each; as many trials run at once as the cluster has room for."""
    sizes: tuple[SizeName, ...] = ()
    """Sizes of the transformer, by their parameters on digits: 4 blocks of other widths. Default: the one
    that --width, --depth and --heads say."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates; at the base width, where there is one. Optuna draws between the extremes. Default:
    --lr."""
    token_kinds: tuple[TokensName, ...] = ()
    """What a token is, see --tokens, which is the default."""
    shares: tuple[float, ...] = (1.0,)
    """Shares of the training runs that trials see; held-out runs are the same for all."""
    num_seeds: int = 1
    """Repetitions of every point of a grid."""
    search: Literal["grid", "optuna"] = "grid"
    """Every combination, or as many as --num-trials of those that Optuna's sampler expects most of."""
    num_trials: int | None = None
    """Trials of a search with Optuna."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """Train all trials to their end, or stop those early whose held-out loss is behind (ASHA). That is for
    learning rates, not for scaling: models of other sizes are not told apart, the quick beginners stay."""
    num_reports: int = 10
    """Held-out losses measured in a training, evenly over its steps; a killed one goes on from the last."""
    held_out_pairs: int = 2048
    """Pairs of held-out runs that a held-out loss is the mean over."""
    num_networks: int = 32
    """Held-out initialisations that the prompt alignment of a finished trial is measured on."""
    num_prompts: int = 10
    """Prompts for each of them."""
    training: TrainConfig = field(default_factory=lambda: TrainConfig(model=DiTConfig(base_width=128)))
    """The training of every trial. Learning rates are meant for --base-width, and transferred to others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("num_seeds", 1),
            ("num_reports", 1),
            ("held_out_pairs", 1),
            ("num_networks", 1),
            ("num_prompts", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares are {self.shares}; expected some between 0 and 1")
        if not all(0 < lr < inf for lr in self.learning_rates):
            raise ValueError(f"learning_rates are {self.learning_rates}; expected positive, finite numbers")
        for name in ("sizes", "learning_rates", "token_kinds", "shares"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} are {getattr(self, name)}; expected each once")
        if (self.search == "optuna") != (self.num_trials is not None):
            raise ValueError(
                f"num_trials is {self.num_trials} with search {self.search!r}; expected a number for optuna, "
                "and none for a grid, which has as many as there are combinations"
            )
        if self.num_trials is not None and (self.num_trials < 1 or self.num_seeds > 1):
            raise ValueError(
                f"num_trials is {self.num_trials}, num_seeds {self.num_seeds}; expected at least 1, and one "
                "seed: Optuna repeats nothing"
            )
        if self.search == "optuna" and len(self.learning_rates) < 2:
            raise ValueError(
                f"learning_rates are {self.learning_rates} with search 'optuna'; expected the two ends of a "
                "range"
            )
        if self.scheduler == "asha" and self.num_reports < 4:
            raise ValueError(
                f"num_reports is {self.num_reports} with scheduler 'asha', which decides by them; "
                "expected at least 4"
            )
        for name in ("calibrate", "moments"):
            if getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}; trials are judged without, expected 0")
        for tokens in self.token_kinds:
            self.check_tokens(tokens)
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        model, plain = self.training.model, DiTConfig()
        every = tuple((t.report_every, t.checkpoint_every) for t in (self.training, TrainConfig()))
        for swept, names, given, default in (
            ("sizes", "width, depth and heads", *((m.width, m.depth, m.heads) for m in (model, plain))),
            ("learning_rates", "lr", self.training.lr, TrainConfig.lr),
            ("token_kinds", "tokens", model.tokens, plain.tokens),
            ("num_reports", "report_every and checkpoint_every", *every),
        ):
            if getattr(self, swept) and given != default:
                raise ValueError(
                    f"{names} {given} with {swept} {getattr(self, swept)}, which say that already; give the "
                    "latter alone"
                )

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """What is swept, and over which values."""
        model = self.training.model
        return {
            "size": self.sizes or (None,),
            "tokens": self.token_kinds or (model.tokens,),
            "lr": self.learning_rates or (self.training.lr,),
            "share": self.shares,
            "seed": tuple(range(self.training.seed, self.training.seed + self.num_seeds)),
        }

    @property
    def total(self) -> int:
        count = self.num_trials or 1
        if self.search == "grid":
            for values in self.axes.values():
                count *= len(values)
        return count

    def base(self) -> GeneratorConfig:
        """The training that trials vary: every report comes with a state, for a held-out loss needs one."""
        steps = -(-self.training.steps // self.num_reports)
        training = replace(self.training, report_every=steps, checkpoint_every=steps)
        own: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(GeneratorConfig)}
        own["training"] = training
        return GeneratorConfig(**own)


def scaling() -> TuneConfig:
    """Five sizes, three shares of the data: how the loss falls with parameters, runs and CPU seconds."""
    return TuneConfig(
        sizes=("0.1M", "0.3M", "1M", "3M", "5M"),
        shares=(0.0625, 0.25, 1.0),
        sampling_steps=5,
        sampler="ddim",
        training=TrainConfig(model=DiTConfig(base_width=128), steps=2000),
    )


def rates() -> TuneConfig:
    """Seven learning rates at a small width, most of them stopped early: the best one serves all widths."""
    return TuneConfig(
        sizes=("0.3M",),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        scheduler="asha",
        sampling_steps=5,
        sampler="ddim",
        training=TrainConfig(model=DiTConfig(base_width=128), steps=2000),
    )


def smoke() -> TuneConfig:
    """Two tiny models on two shares of the data, to see that all works: two minutes."""
    training = TrainConfig(model=DiTConfig(base_width=32), steps=100, batch_size=64, warmup_steps=10)
    return TuneConfig(
        sizes=("0.1M", "0.3M"),
        shares=(0.5, 1.0),
        num_reports=4,
        held_out_pairs=256,
        num_networks=4,
        num_prompts=4,
        sampling_steps=2,
        training=training,
    )


PRESETS = {each.__name__: each for each in (scaling, rates, smoke)}
