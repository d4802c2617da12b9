"""Sections of the report after its headlines: starts, distances, weights, the training, all numbers."""

import base64
import html
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from typing import Any

from ..artefact import WeightGenerator
from ..audit.frontier import frontier_svg
from ..card import how_sampled
from ..evaluation.starts import STARTS
from ..medians import median
from . import plots
from .evidence import Evidence, label
from .glossary import meaning
from .pictures import picture
from .pictures import weights as draw
from .plots import FRACTIONS, figures, show, table

STARTS_IN_WORDS = {
    "own": "as in the zoo",
    "half": "halved",
    "double": "doubled",
    "orthogonal": "orthogonal",
    "uniform": "uniform",
}
NETWORKS_SHOWN, PROMPTS_SHOWN = 4, 5


def recursion(e: Evidence) -> str:
    """Recursive prompting of initialisations that the zoo has none of, and of its own."""
    curves = {kind: e.arrays[f"ood_{kind}_{e.column}"] for kind in STARTS if e.has(f"ood_{kind}_{e.column}")}
    title, updates = e.column.replace("_", " "), curves["own"].shape[1] - 1
    ends = [
        [show(median(curve, 0)[j].item(), 3, column=e.column) for j in (0, 1, updates)]
        for curve in curves.values()
    ]
    facts = table(
        *((STARTS_IN_WORDS[kind], *each) for kind, each in zip(curves, ends, strict=True)),
        heads=("Median", "start", "one update", f"{updates} updates"),
    )
    svg = plots.recursion({STARTS_IN_WORDS[kind]: curve for kind, curve in curves.items()}, title)
    return f"""<p>Initialisations that the zoo has none of, and its own: prompted for the best
{label(e.generator.metric)} again and again, each time from what the last update achieved.</p>
<div class="figures"><figure>{svg}<figcaption>Lines are medians of {len(curves["own"])} networks, bands their
middle half.</figcaption></figure>{facts}</div>"""


def film(gif: bytes) -> str:
    """Generated policies side by side, as `theta watch` filmed them."""
    data = base64.b64encode(gif).decode()
    return f"""<p>Policies made in one update from the same initialisation, an episode of each from the same
start. Above them the return that was prompted, and what is achieved over many other episodes.</p>
<div class="figures"><figure><img src="data:image/gif;base64,{data}" style="width:100%"
alt="generated policies at work"></figure></div>"""


def distances(e: Evidence) -> str:
    """How far the networks made are from everything trained."""
    made, held_out = e.arrays["distance_generated"], e.arrays["distance_held_out"]
    medians = [show(e.result.get(f"distance_{name}")) for name in ("generated", "held_out")]
    series = [("sgd", f"held-out {e.rival} networks", held_out), ("made", "generated networks", made)]
    facts = table(
        ("Generated, best prompt", medians[0]),
        (f"Held-out {e.rival}, equal metric", medians[1]),
        ("Closer than their yardstick", f"{int((made < held_out).sum())} of {len(made)} generated networks"),
        heads=("Median distance", ""),
    )
    svg = plots.shares("distances", series, "distance to the nearest training checkpoint")
    return f"""<p>L2 distance of parameters to the nearest of all training checkpoints, the least over all
orders of the hidden units. The yardstick of each generated network is a checkpoint of the same validation
metric that {e.rival} made in a held-out run. A curve far left of it is copying, far right is where
{e.rival} does not go.</p>
<div class="figures"><figure>{svg}</figure>{facts}</div>"""


def audit(e: Evidence) -> str:
    """What the audit found: the frontier of quality against novelty, and how near copies things are."""
    r = {name.removeprefix("audit_"): value for name, value in e.result.items() if name.startswith("audit_")}
    arrays = {n.removeprefix("audit/"): a for n, a in e.arrays.items() if n.startswith("audit/")}
    metric, axes = f"test_{r['quality_metric']}", list(r["margins"])
    captions = {
        "mistakes": "Novelty in mistakes: none in common with any training network is 1, all of them 0.",
        "weights": "Novelty in weights, modulo the order of units, over a sample of the training networks.",
    }
    drawn = [(frontier_svg(r, arrays, axis, e.rival), captions[axis]) for axis in axes]
    pairs = (
        ("Mean " + label(metric), "quality_generated", "quality_held_out", metric),
        (
            "Copies, nearer to one run than a third of the way to the next, or as good as one",
            "copy_rate",
            "copy_rate_held_out",
            "copy_rate",
        ),
        (
            "Largest overlap of mistakes with a training network (IoU)",
            "overlap_most",
            "overlap_most_held_out",
            "",
        ),
        ("The same with the nearest in weights", "overlap_nearest", "overlap_nearest_held_out", ""),
        ("Share outside the span of training networks", "off_span", "off_span_held_out", ""),
    )
    rows = [
        (title, show(r[ours], 3, column=column), show(r.get(theirs), 3, column=column))
        for title, ours, theirs, column in pairs
        if r.get(ours) is not None  # policies make no mistakes that could be compared
    ]
    prompts = [show(r.get(f"{name}prompt_alignment"), 3) for name in ("", "shuffled_")]
    facts = table(*rows, heads=("", "generated", f"held-out {e.rival}, as good"))
    better = "Better than, at equal novelty" + _points(r["quality_metric"])
    against = table(*_margins(r), heads=(better, "generated", f"held-out {e.rival}, at its best"))
    never = " Where it never is, the number is ∞." if "∞" in against else ""
    return f"""<p>Weights that look new may be blurred or mixed ones of training. Networks for the best prompt
are therefore held against what anybody can make of the training networks: noise on them, means,
draws parameter by parameter, and what lies between two of them. A baseline counts where it is as new as the
networks made; positive numbers are for these.{never} Held-out networks of the same validation metric (as
good) say what is usual, those with the best one (at its best) what {e.rival} can do. With the prompts of each
start shuffled the alignment is {prompts[1]} instead of {prompts[0]}.</p>
{figures(*drawn)}<div class="figures">{facts}{against}</div>"""


def _points(metric: str) -> str:
    """The unit of differences of a metric that is a share; of others nothing."""
    return ", points" if metric.endswith(FRACTIONS) else ""


def _margins(r: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """By how much networks, and held-out ones, are better than each baseline; ∞ if it is never as new.

    Differences of shares are in points of a hundredth, which is not what a per cent of them would be.
    """
    axis, unit = r["novelty_axis"], 100 if _points(r["quality_metric"]) else 1
    rows = []
    for name, ours in r["margins"][axis].items():
        cells = []
        for value, low, high in (ours, r["margins_held_out"][axis][name]):
            numbers = [show(math.inf if v is None else unit * v, 3) for v in (value, low, high)]
            cells.append(
                numbers[0] if value is None else f"{numbers[0]} <small>({numbers[1]} to {numbers[2]})</small>"
            )
        rows.append((label(name), *cells))
    return rows


def weights(e: Evidence) -> str:
    """Weights of starts, of networks made and of trained ones, as pictures."""
    a, spec, column = e.arrays, e.generator.coordinates.spec, e.column
    last = a["made_theta"].shape[1] - 1
    chosen = sorted({round(last * i / (PROMPTS_SHOWN - 1)) for i in range(PROMPTS_SHOWN)}, reverse=True)
    rows = []
    for n in range(min(NETWORKS_SHOWN, len(a["start_theta"]))):
        before, after = (show(value, 3, column=column) for value in a[f"sgd_{column}"][n, [0, -1]].tolist())
        row = [(before, picture(spec, a["start_theta"][n]))]
        for k in chosen:
            pair = (show(a[name][0, n, k].item(), 3, column=column) for name in ("prompts", "achieved_test"))
            row.append((" → ".join(pair), picture(spec, a["made_theta"][n, k])))
        rows.append([*row, (after, picture(spec, a["sgd_theta"][n]))])
    between = [""] * (len(chosen) - 2)
    svg, scale = draw(rows, ["start", "worst prompt", *between, "best prompt", f"{e.rival}'s end"])
    what = next((name for name, _, shape in spec.slices() if len(shape) >= 2), "theta")
    caption = (
        f"<code>{html.escape(what)}</code> of held-out networks, one a row, on one scale: -{scale:.2g}"
        f'<span class="scale"></span>{scale:.2g}. Below: {label(column)}, or prompted → achieved.'
    )
    return (
        f"<p>From the same start: generated for better and better prompts, and where {e.rival} went.</p>"
        f'<figure><div class="scroll">{svg}</div><figcaption>{caption}</figcaption></figure>'
    )


def training(e: Evidence) -> str:
    """The generator and its learning curve."""
    g, config, curve = e.generator, e.generator.model.config, e.curve
    prompts = []
    for name in g.metrics:
        low, high = (show(value) for value in g.range_of(name))
        column, objective = label(g.column_of(name)), html.escape(g.objective_of(name))
        prompts.append(f"{column} ({objective}), seen {low} to {high}")
    rows = [
        ("Model", f"{type(g.model).__name__}, {sum(p.numel() for p in g.model.parameters()):,} parameters"),
        (
            "Size",
            f"{config.tokens} as tokens, width {config.width}, depth {config.depth}, {config.heads} heads",
        ),
        ("Coordinates", html.escape(g.coordinates.words)),
        ("Prompts", "; or ".join(prompts)),
        ("Sampling", how_sampled(g)),
        ("Learned from", _learned_from(g)),
    ]
    if not curve:
        return table(*rows) + '<p class="note">There is no training log.</p>'
    end, waits = curve[-1], [entry["data_wait_share"] for entry in curve if "data_wait_share" in entry]
    rows += [
        (
            "Training",
            f"{show(end['step'])} steps in {show(end.get('train_s'))} s, last loss {show(end['loss'])}",
        ),
        ("Waiting for data", f"{sum(waits) / len(waits):.1%} of the time" if waits else "-"),
    ]
    loss = plots.training_curve(curve, "step", "loss", ("step", "training loss"))
    pairs = plots.training_curve(
        curve, "train_s", "pairs_per_s", ("seconds of training", "pairs per second and worker")
    )
    caption = "Loss of the predicted clean update, in units of the update's scale; mean between reports."
    return figures((loss, caption), (pairs, "Pairs of checkpoints that each worker got through.")) + table(
        *rows
    )


def _learned_from(generator: WeightGenerator) -> str:
    if generator.origin.released:
        return f"runs of the authors of {generator.origin.released}, elsewhere"
    return f"{generator.origin.num_training_runs:,} runs"


def numbers(e: Evidence) -> str:
    """Every number of the evaluation, and what made it."""
    origin, header = e.generator.origin, e.zoo.header
    packages = ("thetaforge", "torch", "numpy", "matplotlib")
    versions = {"Python": platform.python_version()} | {
        name: found.version for name in packages for found in importlib.metadata.distributions(name=name)
    }
    numbers = [
        (f"<code>{html.escape(k)}</code>", show(v), html.escape(meaning(k, e.rival)))
        for k, v in e.result.items()
    ]
    folded = table(*numbers, heads=("name", "value", "meaning"))
    return f"<details><summary>{len(numbers)} numbers of the evaluation</summary>{folded}</details>" + table(
        ("Task", html.escape(origin.task)),
        ("Zoo", f"<code>{html.escape(str(e.zoo.path))}</code>"),
        ("Zoo header, SHA-256", f"<code>{html.escape(origin.zoo_sha256)}</code>"),
        ("Networks", f"{header.spec.D:,} parameters, spec <code>{header.spec.id}</code>"),
        ("Sampling", f"{show(e.result.get('sampler'))}, {show(e.result.get('sampling_steps'))} steps"),
        ("Versions", html.escape(", ".join(f"{name} {version}" for name, version in versions.items()))),
    )
