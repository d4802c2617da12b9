"""Ablations: one change at a time, of our generator or between the published one and ours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from statistics import fmean, stdev
from typing import Any, TypeVar

Config = TypeVar("Config")
DEFAULT = "default"


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with other values, named by dots where configs are nested: {"training.model.path": "flow"}.

    All changes are made at once, so that they are checked together.

    Raises:
        ValueError: the config refuses them.
        KeyError: there is no such field.
    """
    assert is_dataclass(config)
    assert not isinstance(config, type)
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if head not in {each.name for each in fields(config)}:
            raise KeyError(f"{type(config).__name__} has no {head}")
        if dot:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    own |= {head: changed(getattr(config, head), each) for head, each in inner.items()}
    return replace(config, **own)


def at(config: Any, name: str) -> Any:
    """The value of a field that is named by dots."""
    for each in name.split("."):
        config = getattr(config, each)
    return config


@dataclass(frozen=True)
class Variant:
    """A training that differs from the default in one respect."""

    name: str
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)


MODEL = "training.model"
VARIANTS = (
    Variant(DEFAULT, "as it is"),
    Variant("prediction-v", "predicts the velocity", {f"{MODEL}.prediction": "v"}),
    Variant("prediction-noise", "predicts the noise", {f"{MODEL}.prediction": "noise"}),
    Variant("min-snr", "errors weighed by min-SNR", {"training.weighting": "min-snr"}),
    Variant("path-linear", "the published 1,000 steps, uniform", {f"{MODEL}.path": "linear"}),
    Variant("path-flow", "the straight path", {f"{MODEL}.path": "flow"}),
    Variant(
        "flow-matching",
        "the straight path, its velocity predicted",
        {f"{MODEL}.path": "flow", f"{MODEL}.prediction": "v"},
    ),
    Variant("shift-1", "training times uniform", {f"{MODEL}.time_shift": 1.0}),
    Variant("shift-8", "training times twice as far towards noise", {f"{MODEL}.time_shift": 8.0}),
    Variant("condition-token", "the condition as tokens", {f"{MODEL}.condition": "token"}),
    Variant("scales-single", "one scale for all coordinates", {"scales": "single"}),
    Variant("rank-0", "parameters as they are, no function space", {"rank": 0}),
    Variant("rank-32", "32 directions of the inputs", {"rank": 32}),
    Variant("hidden-space", "function space in layers that read hidden units, too", {"hidden_space": True}),
    Variant("chunks", "tokens as published, units shuffled", {f"{MODEL}.tokens": "chunks"}),
    Variant(
        "chunks-none",
        "tokens as published, units as they are",
        {f"{MODEL}.tokens": "chunks", f"{MODEL}.symmetry": "none"},
    ),
    Variant("canonical", "tokens as published, units in order", {f"{MODEL}.tokens": "canonical"}),
    Variant("behaviour-0", "nothing said of what networks answer", {"training.behaviour": 0.0}),
    Variant("behaviour-10", "answers count a tenth", {"training.behaviour": 10.0}),
    Variant("pairs-published", "pairs drawn as published", {"training.pairs": "published"}),
    Variant("dropout", "a tenth of the prompts dropped", {f"{MODEL}.prompt_dropout": 0.1}),
    Variant(
        "guidance",
        "a tenth of the prompts dropped, guidance 1.5",
        {f"{MODEL}.prompt_dropout": 0.1, "guidance": 1.5},
    ),
)
"""One change each; where one is nothing without another, like guidance, both."""


def chosen(only: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of these names, all if there are none; the default is always among them.

    Raises:
        ValueError: there is no such variant.
    """
    known = {variant.name: variant for variant in VARIANTS}
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"no variant {', '.join(unknown)}; expected some of {', '.join(known)}")
    return tuple(each for name, each in known.items() if not only or name in (*only, DEFAULT))


CHANGES: Mapping[str, tuple[str, ...]] = {
    "pairs": ("training.pairs",),
    "tokens": (),
    "scales": ("scales",),
    "function space": ("rank", "hidden_space"),
    "conditioning": (),
    "behaviour": ("training.behaviour",),
    "schedule": (f"{MODEL}.path", f"{MODEL}.time_shift", f"{MODEL}.prediction", "sampler", "sampling_steps"),
    "size and rates": (
        *(f"{MODEL}.{name}" for name in ("width", "depth", "heads", "mlp_ratio", "base_width")),
        *(f"training.{name}" for name in ("steps", "batch_size", "lr", "weight_decay", "warmup_steps")),
        *(f"training.{name}" for name in ("clip_norm", "ema", "optimizer")),
    ),
}
"""What differs between the published recipe and ours: the fields of each change. Tokens and conditioning have
none of their own: the published model is both at once."""


def between(ours: Config, published: Config, as_published: Iterable[str]) -> Config:
    """Our recipe with some of its changes taken back, or the published one with the others made.

    The published tokens with our conditioning, or the other way round, are those of our own chunks and units.

    Args:
        as_published: of CHANGES, those in which it is as published.
    """
    back = set(as_published)
    ours, published = (_said(each) for each in (ours, published))
    values = {
        name: at(published if change in back else ours, name)
        for change, names in CHANGES.items()
        for name in names
    }
    kind, condition = at(ours, f"{MODEL}.tokens"), at(ours, f"{MODEL}.condition")
    if "tokens" in back:
        kind = "gpt" if "conditioning" in back else "chunks"
    if "conditioning" in back:
        condition = "token"
    chunk = at(published if "tokens" in back else ours, f"{MODEL}.chunk")
    values |= {f"{MODEL}.tokens": kind, f"{MODEL}.condition": condition, f"{MODEL}.chunk": chunk}
    return changed(ours, values)


def _said(config: Config) -> Config:
    """With what is left to defaults said, for they depend on other fields."""
    model = at(config, MODEL).resolved()
    scales = at(config, "scales") or ("single" if model.tokens == "gpt" else "tensor")
    return changed(config, {"training.model": model, "scales": scales})


@dataclass(frozen=True, kw_only=True)
class Result:
    """One training, and how its networks did: of held-out initialisations, on one split."""

    variant: str
    seed: int
    alignment: float
    """The mean over networks."""
    alignment_median: float
    one_update: dict[str, float]
    """Metrics on that split of networks prompted for the best, means."""
    cpu_s: float
    """Of training."""
    steps: int
    pairs: int
    parameters: int
    evaluations: int
    """Of the model, for a network."""
    networks_per_cpu_s: float

    def row(self) -> dict[str, Any]:
        """What a table says of it."""
        own = asdict(self)
        return {name: value for name, value in own.items() if name != "one_update"} | {
            f"one_update_{name}": value for name, value in self.one_update.items()
        }


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A variant over its seeds; standard deviations are None with a single one."""

    variant: str
    seeds: int
    alignment: float
    alignment_std: float | None
    gain: float | None
    """Mean alignment less that of what it is compared with, over the seeds that both have."""
    gain_std: float | None
    one_update: dict[str, float]
    one_update_std: dict[str, float | None]
    pairs: float
    cpu_s: float
    evaluations: float
    networks_per_cpu_s: float


def summaries(judged: Sequence[Result], compared_with: str = DEFAULT) -> list[Summary]:
    """One for each variant, the best mean alignment first; those that are not numbers last."""
    by_variant: dict[str, list[Result]] = {}
    for each in judged:
        by_variant.setdefault(each.variant, []).append(each)
    reference = {each.seed: each.alignment for each in by_variant.get(compared_with, [])}
    found = [_summary(name, own, reference) for name, own in by_variant.items()]
    return sorted(found, key=lambda each: (each.alignment != each.alignment, -each.alignment))


def _summary(variant: str, own: Sequence[Result], reference: Mapping[int, float]) -> Summary:
    gains = [each.alignment - reference[each.seed] for each in own if each.seed in reference]
    updates = {name: [each.one_update[name] for each in own] for name in own[0].one_update}

    def mean(name: str) -> float:
        return fmean(getattr(each, name) for each in own)

    return Summary(
        variant=variant,
        seeds=len(own),
        alignment=mean("alignment"),
        alignment_std=_spread([each.alignment for each in own]),
        gain=fmean(gains) if gains else None,
        gain_std=_spread(gains),
        one_update={name: fmean(values) for name, values in updates.items()},
        one_update_std={name: _spread(values) for name, values in updates.items()},
        pairs=mean("pairs"),
        cpu_s=mean("cpu_s"),
        evaluations=mean("evaluations"),
        networks_per_cpu_s=mean("networks_per_cpu_s"),
    )


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
