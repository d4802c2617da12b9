"""Channels: the metrics that a generator is conditioned on, any of which may be prompted.

The main one is the zoo's own, which holes, calibration and audits are about; the others are as good as it in
prompts. Where a channel is not prompted, neither its prompt nor the start network's metric is looked at.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory.header import ZooHeader, columns_of
from ckpt_factory.tasks.base import SPLITS, Task

from .training.pairs import Pairs

Channels = tuple[tuple[str, str], ...]
"""Columns of a zoo, each with its objective, "min" or "max"."""
Values = Float[Tensor, " K"] | Mapping[str, Float[Tensor, " K"]]
"""Of the main metric, or by the names of several."""
Prompts = Float[Tensor, " K"] | float | Mapping[str, Float[Tensor, " K"] | float]
UNLIKE_QUALITY = ("_std", "_episodes")
"""Ends of columns that say how a metric was measured rather than how good a network is."""


def name_of(column: str) -> str:
    """The name of a channel, "loss" of validation_loss."""
    return column.removeprefix("validation_")


def promptable(header: ZooHeader, task: Task) -> list[str]:
    """The columns of a zoo that a generator may be prompted with, its own prompted one first.

    They are of the same split, and the task measures them.
    """
    split = next((split for split in SPLITS if header.prompted.startswith(f"{split}_")), "")
    others = [
        column
        for column in header.metrics
        if column.startswith(split) and column in columns_of(task) and not column.endswith(UNLIKE_QUALITY)
    ]
    return [header.prompted, *(column for column in others if column != header.prompted)]


def columns_of_names(names: Sequence[str], header: ZooHeader, task: Task) -> tuple[str, ...]:
    """The columns of named metrics, the zoo's own first; of no names that one alone.

    Raises:
        ValueError: the zoo has no such metric, or its own is not among them.
    """
    known = {name_of(column): column for column in promptable(header, task)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown))}; the zoo has {', '.join(known)}")
    own = name_of(header.prompted)
    if names and own not in names:
        raise ValueError(
            f"metrics are {', '.join(names)}; expected the zoo's own among them: {own} {' '.join(names)}"
        )
    return (header.prompted, *(known[name] for name in names if name != own))


def with_objectives(
    columns: Sequence[str], training: Mapping[str, Float[Tensor, " C"]], objective: str
) -> Channels:
    """Every column with its objective: the main one's, where it goes along with that over all training
    checkpoints, or else the other.

    Raises:
        ValueError: a metric is the same for all of them.
    """
    main, other = training[columns[0]].double(), {"min": "max", "max": "min"}[objective]
    found = [(columns[0], objective)]
    for column in columns[1:]:
        values = training[column].double()
        if values.min() == values.max():
            raise ValueError(
                f"{name_of(column)} is {float(values[0]):g} in all training checkpoints: there is nothing to "
                "prompt for; leave it out of --metrics"
            )
        together = float(torch.corrcoef(torch.stack([main, values]))[0, 1])
        found.append((column, other if together < 0 else objective))
    return tuple(found)


def prompt_some(pairs: Pairs, *, rng: torch.Generator) -> Pairs:
    """Pairs as they are learned from: of each, some metrics are prompted, the others NaN.

    Each of the 2^M - 1 choices of at least one of M metrics is as likely as another; a single metric is
    always prompted.
    """
    num, metrics = pairs.prompt.shape
    if metrics == 1:
        return pairs
    choice = torch.randint(1, 2**metrics, (num, 1), generator=rng)
    prompted = (choice >> torch.arange(metrics)) % 2 == 1
    return pairs._replace(prompt=pairs.prompt.where(prompted.to(pairs.prompt.device), torch.nan))


def by_name(values: Prompts, main: str) -> dict[str, Tensor | float]:
    """Prompts or metrics by name; a number or one for each network is of the main metric."""
    return dict(values) if isinstance(values, Mapping) else {main: values}


def conditions(
    names: Sequence[str], metrics: Values, prompts: Prompts
) -> tuple[Float[Tensor, "K M"], Float[Tensor, "K M"]]:
    """Metrics of start networks and prompts for all M channels of a generator, NaN where nothing is prompted.

    Args:
        names: of the channels, the main one first.
        metrics: of every prompted channel; further ones are not looked at.

    Raises:
        ValueError: nothing is prompted, an unknown metric is, or with no finite number, neither one for each
            network nor one for all, or the metric of a start network is missing or no finite number.
    """
    wanted, given = by_name(prompts, names[0]), by_name(metrics, names[0])
    check_names(names, list(wanted))
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} of the start networks is missing; expected what each has of every metric "
            f"that is prompted: {', '.join(wanted)}"
        )
    some = torch.as_tensor(given[next(iter(wanted))])
    nothing = torch.full_like(some, torch.nan)
    starts, asked = [], []
    for name in names:
        if name not in wanted:
            starts.append(nothing)
            asked.append(nothing)
            continue
        start = torch.as_tensor(given[name])
        if start.shape != some.shape:
            raise ValueError(
                f"{name} of the start networks is {tuple(start.shape)}; expected {tuple(some.shape)}, as of "
                "the other metrics"
            )
        if not start.isfinite().all():
            raise ValueError(
                f"{name} of {int((~start.isfinite()).sum())} start networks is NaN or infinity; expected "
                "finite numbers: leave out networks that are broken"
            )
        prompt = torch.as_tensor(wanted[name], dtype=start.dtype, device=start.device)
        if prompt.shape not in ((), (1,), start.shape):
            raise ValueError(
                f"prompt of {name} is {tuple(prompt.shape)}; expected {tuple(start.shape)}, one for each "
                "start network, or one number for all"
            )
        if not prompt.isfinite().all():
            raise ValueError(f"prompt of {name} holds NaN or infinity; expected finite numbers")
        starts.append(start)
        asked.append(prompt.expand(start.shape))
    return torch.stack(starts, -1), torch.stack(asked, -1)


def check_names(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse prompts for what a generator does not know, and none at all.

    Raises:
        ValueError: with the names that there are.
    """
    if not wanted:
        raise ValueError(f"no metric is prompted; expected at least one of {', '.join(names)}")
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(
            f"the generator knows no metric {', '.join(map(repr, unknown))}; expected {' or '.join(names)}"
        )
