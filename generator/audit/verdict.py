"""The verdict of an audit, in words, with the numbers that carry it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.stats import fisher_exact
from torch import Tensor

from ckpt_factory.words import counted

from ..medians import median
from .baselines import BASELINES
from .frontier import AXES, Judged, Margin, Subjects, cloud_of, margin

COPIES_ALLOWED = 0.05
"""Share of copies, beyond what held-out runs have, from which on a generator copies."""
BROKEN_ALLOWED = REPEATED_ALLOWED = COPIES_ALLOWED
FEW = 8
"""Distinct networks, below which intervals say little."""
NEARLY_COPIES = 0.4
"""The same of the median distance, relative to that of held-out networks."""
PARTLY_COPIES = 0.8
BEYOND = 1.25
SAME_MISTAKES = 0.95
"""Wrong predictions in common, from which on two networks are one: a copy in other coordinates."""
CHANCE = 0.025
"""Probability that as many networks have them by chance, from which on they do not count."""
INSIDE_SPAN = 0.25
"""Share outside the span of training networks, relative to that of held-out ones, that is as good as none."""

DEAF = 0.2
"""Gain in alignment of true prompts over shuffled ones, of about 2 there is, that is as good as none."""


def conclude(
    numbers: dict[str, Any],
    subjects: Subjects,
    families: Mapping[str, Sequence[tuple[float, Judged]]],
    quality: tuple[str, str],
    seed: int,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All numbers with the verdict, and the arrays behind the frontier.

    Args:
        numbers: of the distances, and what else is known.
        subjects: as `audit.judge` found them.
        families: by baseline its settings, each with what was found.
        quality: the metric that stands for it, and whether it is "min" or "max" that is good.
    """
    made, _, finest = subjects
    name, objective = quality
    axes = ["weights"] if made.overlap.isnan().all() else list(AXES)
    margins: dict[str, dict[str, Margin]] = {}
    own: dict[str, dict[str, Margin]] = {}
    for axis in axes:
        clouds = {
            key: [cloud_of(judged, axis, objective) for _, judged in settings]
            for key, settings in families.items()
        }
        for subject, found in ((made, margins), (finest, own)):
            found[axis] = {
                key: margin(cloud_of(subject, axis, objective), family, seed=seed)
                for key, family in clouds.items()
            }
    numbers = numbers | {"quality_metric": name, "quality_objective": objective}
    numbers |= _found_of(subjects) | {"novelty_axis": axes[0]}
    least = nearest_baseline(margins[axes[0]], own[axes[0]])
    numbers |= {
        "nearest_baseline": least,
        "margin": _known(margins[axes[0]][least].value),
        "margin_low": _known(margins[axes[0]][least].low),
        "beats_every_baseline": all(each.low > 0 for each in margins[axes[0]].values()),
    }
    outcome, verdict = judgement(numbers, margins[axes[0]], own[axes[0]])
    if (
        outcome.startswith("no better")
        and len(axes) > 1
        and all(m.low > 0 for m in margins["weights"].values())
    ):
        verdict += " In weights alone they are ahead of every baseline that is as new."
    verdict += _remarks(numbers, len(made.quality))
    result = {"outcome": outcome, "passes": outcome == "generates", "verdict": verdict} | numbers
    return result | {"margins": _table(margins), "margins_held_out": _table(own)}, _arrays(subjects, families)


def nothing_to_audit(counts: dict[str, Any]) -> dict[str, Any]:
    """What is found where no network that stands for the quality is finite."""
    return {"outcome": "broken", "passes": False, "verdict": _broken(counts) + _drawn(counts)} | counts


def _broken(n: Mapping[str, Any]) -> str:
    return f"Broken: {n['broken']:.0%} of the networks have no finite parameters or metrics."


def _drawn(n: Mapping[str, Any]) -> str:
    if n["networks_given"] == n["networks_asked"]:
        return ""
    return f" Audited {n['networks_asked']:,} of {n['networks_given']:,} networks."


def _remarks(n: Mapping[str, Any], count: int) -> str:
    """What a verdict does not stand for."""
    text = _drawn(n)
    if 0 < n["broken"] <= BROKEN_ALLOWED:
        text += f" {n['broken']:.1%} of the networks have no finite parameters or metrics."
    if n["repeated"]:
        text += f" {n['repeated']:.1%} of the networks are others once more, and count once."
    if count < FEW:
        text += f" That is of {counted(count, 'network')}, too few for intervals to be trusted."
    if n["searched_runs"] < n["training_runs"]:
        text += f" Searched {n['searched_runs']:,} of {n['training_runs']:,} training runs."
    return text


def _found_of(subjects: Subjects) -> dict[str, Any]:
    """Of the networks, of held-out ones as good, and of held-out ones at their best."""
    made, held_out, finest = subjects
    return {
        "quality_generated": _mean(made.quality),
        "quality_held_out": _mean(held_out.quality),
        "quality_finest": _mean(finest.quality),
        "overlap_most": _mean(made.overlap),
        "overlap_most_held_out": _mean(held_out.overlap),
        "overlap_nearest": _mean(made.overlap_nearest),
        "overlap_nearest_held_out": _mean(held_out.overlap_nearest),
        **same_mistakes(made.overlap, torch.cat([held_out.overlap, finest.overlap])),
        "off_span": _median(made.off_span),
        "off_span_held_out": _median(held_out.off_span),
    }


def judgement(
    numbers: Mapping[str, Any], margins: Mapping[str, Margin], own: Mapping[str, Margin]
) -> tuple[str, str]:
    """(outcome in a word or some, verdict in a sentence or some).

    A baseline counts if held-out networks, at their best, beat it beyond chance, or if the networks are worse
    than it beyond chance.
    """
    n = numbers
    relative, ratio = n["relative_distance"], _ratio(n["off_span"], n["off_span_held_out"])
    if n["broken"] > BROKEN_ALLOWED:
        return "broken", _broken(n)
    copied = n["copy_rate"] > n["copy_rate_held_out"] + COPIES_ALLOWED
    same = has_same_mistakes(n)
    if copied or same or relative < NEARLY_COPIES:
        return "copies", (
            f"Copies: {n['copy_rate']:.0%} of the networks are nearer to one training run than a third of "
            f"the way to the next, or as good as one (held-out runs: {n['copy_rate_held_out']:.0%}), "
            + (f"{_shared(n)} make the very mistakes of one, " if same else "")
            + f"and their distance is {relative:.2f} times that of held-out runs."
        )
    if n["repeated"] > REPEATED_ALLOWED:
        return "repeats itself", (
            f"Repeats itself: {n['repeated']:.0%} of the networks asked for are others of them once more."
        )
    if ratio is not None and ratio < INSIDE_SPAN:
        return "recombines", (
            f"Recombines: {n['off_span']:.2g} of a network lies outside the span of training networks, of "
            f"held-out ones {n['off_span_held_out']:.2g}; it is an interpolation of what was trained."
        )
    if is_deaf(n):
        return "deaf to prompts", (
            f"Deaf to prompts: the mean alignment is {n['prompt_alignment']:.3g}, with prompts shuffled "
            f"{n['shuffled_prompt_alignment']:.3g}; the median network gains {n['prompt_gain']:.2g} "
            f"({n['prompt_gain_low']:.2g} at least) by its own prompts, one that obeys about 2."
        )
    lost = lost_to(margins, own)
    what = f"{n['quality_metric']} {n['quality_generated']:.3g}"
    if lost:
        worst = nearest_baseline(margins, own)
        return f"no better than {worst}", _reproach(lost, worst, what, margins[worst], own[worst])
    return "generates", _praise(n, what, margins, own)


def _reproach(lost: Sequence[str], worst: str, what: str, ours: Margin, theirs: Margin) -> str:
    start = f"No better than {_words(lost)}: the {what} is "
    if ours.high < 0:
        return (
            start + f"behind that of {worst} at equal novelty by {_interval(ours.mirrored())}, beyond chance."
        )
    side, by = ("ahead of", ours) if ours.value > 0 else ("behind", ours.mirrored())
    better = "any amount" if math.isinf(theirs.value) else _number(theirs.value)
    return start + (
        f"{side} that of {worst} at equal novelty by {_interval(by)}{' only' * (ours.value > 0)}, where "
        f"held-out networks are better by {better}."
    )


def has_same_mistakes(numbers: Mapping[str, Any]) -> bool:
    """Whether more networks than of held-out runs, beyond chance, make the mistakes of a training network."""
    n = numbers
    if n["same_mistakes_rate"] is None:
        return False
    more = n["same_mistakes_rate"] - n["same_mistakes_rate_held_out"]
    return more > COPIES_ALLOWED and n["same_mistakes_chance"] < CHANCE


def _shared(n: Mapping[str, Any]) -> str:
    return f"{n['same_mistakes_rate']:.0%} (held-out runs: {n['same_mistakes_rate_held_out']:.0%})"


def is_deaf(numbers: Mapping[str, Any]) -> bool:
    """Whether networks that were prompted are no more what was asked for than what others were."""
    if "prompt_gain" not in numbers:
        return False
    return numbers["prompt_gain"] < DEAF or numbers["prompt_gain_low"] <= 0


def lost_to(margins: Mapping[str, Margin], own: Mapping[str, Margin]) -> list[str]:
    """The baselines that networks are no better than."""
    return [key for key, each in margins.items() if is_lost(each, own[key])]


def nearest_baseline(margins: Mapping[str, Margin], own: Mapping[str, Margin]) -> str:
    """The one with the least margin: of those that networks are no better than, if there are any."""
    return min(lost_to(margins, own) or margins, key=lambda key: margins[key].value)


def is_lost(ours: Margin, theirs: Margin) -> bool:
    """Whether networks are worse than a baseline, or no better than one that held-out ones, `theirs`, beat.

    All beyond chance. The first is enough: the whole interval is behind. Of the second three things are:
    held-out networks beat it, ours do not, and the difference of both. Noise on training networks is as
    good as noise give or take chance, and must not pass by luck; nor must networks as good as held-out ones
    fail by it, where these are hardly better.
    """
    if ours.high < 0:
        return True
    if not theirs.low > 0 >= ours.low:
        return False
    if math.isinf(theirs.value):
        return True
    chance = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return theirs.value - ours.value > chance


def _praise(n: Mapping[str, Any], what: str, margins: Mapping[str, Margin], own: Mapping[str, Margin]) -> str:
    relative = n["relative_distance"]
    start = "Generates: the networks are new" if relative >= PARTLY_COPIES else "Generates, partly remembered"
    text = f"{start}, {relative:.2f} times as far from training runs as held-out ones"
    if relative > BEYOND:
        text += ", perhaps off the region that training visits"
    text += f" (copies: {n['copy_rate']:.0%}); "
    unbeaten = [key for key, each in margins.items() if each.value <= 0]
    unsure = [key for key, each in margins.items() if each.low <= 0 < each.value]
    nearest = n["nearest_baseline"]
    if not unbeaten and not unsure:
        return text + (
            f"with {what} they are better than every baseline that is as new, by "
            f"{_interval(margins[nearest])} at least ({nearest})."
        )
    parts = []
    if unsure:
        parts.append(f"better than {_words(unsure)} only by {_interval(margins[unsure[0]])}, within chance")
    if unbeaten:
        parts.append(
            f"no better than {_words(unbeaten)} at equal novelty ({_interval(margins[unbeaten[0]])}), which "
            f"held-out networks are not either ({_interval(own[unbeaten[0]])})"
        )
    return text + f"with {what} they are " + "; ".join(parts) + "."


def _words(names: Sequence[str]) -> str:
    return ", ".join(_on_training(name) for name in names)


def _on_training(name: str) -> str:
    words = {
        "noise": "noise on training networks",
        "interpolation as is": "interpolation of training networks as is",
    }
    return words.get(name, f"{name} of training networks")


def _interval(m: Margin) -> str:
    if math.isinf(m.value):
        return "any amount"
    return f"{_number(m.value)} ({_number(m.low)} to {_number(m.high)})"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _known(value: float) -> float | None:
    """None for the infinite margin over a baseline that is never as new."""
    return value if math.isfinite(value) else None


def _table(margins: Mapping[str, Mapping[str, Margin]]) -> dict[str, dict[str, list[float | None]]]:
    return {axis: {key: [*map(_known, each)] for key, each in of.items()} for axis, of in margins.items()}


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _mean(values: Tensor) -> float | None:
    kept = values[values.isfinite()].double()
    return float(kept.mean()) if len(kept) else None


def _median(values: Tensor) -> float | None:
    kept = values[values.isfinite()].double()
    return float(median(kept)) if len(kept) else None


def same_mistakes(made: Tensor, held_out: Tensor) -> dict[str, float | None]:
    """Share of networks that make the mistakes of one training network, of held-out ones too, and the chance.

    Good networks make few mistakes, and where examples are few some make the same ones without being copies:
    of held-out digits networks at their best 4 %. So what counts is how many more there are, and with which
    probability chance alone makes so many more (Fisher's exact test, one-sided).
    """
    names = "same_mistakes_rate", "same_mistakes_rate_held_out", "same_mistakes_chance"
    if made.isnan().all():
        return dict.fromkeys(names)
    ours, theirs = made >= SAME_MISTAKES, held_out >= SAME_MISTAKES
    counts = [[int(same.sum()), int((~same).sum())] for same in (ours, theirs)]
    chance = fisher_exact(counts, alternative="greater").pvalue  # pyright: ignore[reportAttributeAccessIssue]
    rates = (float(same.double().mean()) for same in (ours, theirs))
    return dict(zip(names, (*rates, float(chance)), strict=True))


FIELDS = ("quality", "distance", "overlap", "off_span", "overlap_nearest")


def _arrays(subjects: Subjects, families: Mapping[str, Sequence[tuple[float, Judged]]]) -> dict[str, Tensor]:
    """{"made/quality": (K,), ..., "noise/quality": (settings, n), "noise/settings": (settings,)}."""
    arrays = {
        f"{key}/{name}": getattr(judged, name)
        for key, judged in subjects._asdict().items()
        for name in FIELDS
    }
    for key in BASELINES:
        if settings := families.get(key):
            arrays[f"{key}/settings"] = torch.tensor([setting for setting, _ in settings])
            for name in ("quality", "distance", "overlap"):
                arrays[f"{key}/{name}"] = torch.stack([getattr(judged, name) for _, judged in settings])
    return arrays
