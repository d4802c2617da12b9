"""The report: what a zoo, its generator and their evaluation amount to, in one HTML file to read offline."""

import html
import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckpt_factory.card import recipe_facts, zoo_summary
from ckpt_factory.zoo import Zoo

from . import plots
from .artefact import WeightGenerator
from .evaluate import prompt_alignment
from .plots import figures, show, table

FOLLOWS = {
    0.95: "do almost exactly as prompted",
    0.8: "do largely as prompted",
    0.4: "follow their prompts loosely",
    -math.inf: "do not do as prompted",
}
NEWNESS = {
    1.25: "no copies, though perhaps off the region that SGD visits",
    0.8: "new networks rather than copies",
    0.4: "partly remembered, partly new",
    -math.inf: "copies of training checkpoints, or nearly so",
}
"""Verdicts by the least prompt alignment, or distance ratio, that they take."""
MEANINGS = {
    "prompt_alignment": "R² of prompts against achieved test metrics: 1 as prompted, 0 as the mean prompt",
    "prompt_alignment_std_over_seeds": "its standard deviation over seeds of the sampling noise",
    "prompt_alignment_median": "its median over networks and seeds",
    "prompt_alignment_worst_network": "its least over networks and seeds; it is not clipped",
    "best_prompt": "the prompt of the one update that is compared with SGD",
    "sgd_equivalent_steps": "SGD steps until the same start is as good as after one update, median",
    "sgd_total_steps": "length of the SGD runs",
    "retrieval_prompt_alignment": "alignment of the control, the training checkpoint nearest the prompt",
    "distance_generated": "median distance of generated networks to the nearest training checkpoint",
    "distance_held_out": "the same for held-out SGD checkpoints of equal validation metric",
    "distance_ratio": "generated over held-out: 1 is as new as a new run, 0 is a copy",
    "task": "the learning problem",
    "sampler": "how the generator samples",
    "sampling_steps": "evaluations of the generator for one update",
    "num_networks": "held-out initialisations that were prompted",
    "num_seeds": "repetitions with other sampling noise",
    "wall_s": "seconds the evaluation took",
}
MEANINGS_BY_METRIC = (
    ("one_update_", "_std", "standard deviation over networks of {} after one update"),
    ("one_update_", "", "{} after one update with the best prompt, mean over networks and seeds"),
    ("sgd_final_", "", "{} at the end of the SGD runs from the same starts, mean"),
    ("retrieval_", "", "{} of the training checkpoints nearest the best prompt, mean"),
)
"""Prefix, suffix and meaning of the numbers that there is one of for each metric."""
NETWORKS_SHOWN, PROMPTS_SHOWN = 4, 5


@dataclass(frozen=True)
class Evidence:
    """What a report is about."""

    zoo: Zoo
    generator: WeightGenerator
    result: Mapping[str, Any]
    arrays: Mapping[str, Tensor]
    curve: Sequence[dict[str, Any]]

    @property
    def column(self) -> str:
        """The test column of the prompted metric, "test_loss"."""
        return f"test_{self.generator.metric}"

    def has(self, *names: str) -> bool:
        return all(name in self.arrays and self.arrays[name].numel() for name in names)


def render_report(
    zoo: Zoo,
    generator: WeightGenerator,
    result: dict[str, Any],
    arrays: dict[str, Tensor],
    curve: list[dict[str, float | int]],
) -> str:
    """One HTML document that refers to nothing outside; the same input gives the same bytes.

    A section whose arrays are missing says so. The zoo needs one finished shard at least.
    """
    e = Evidence(zoo, generator, result, arrays, curve)
    one = (f"one_update_{e.column}", f"sgd_{e.column}")
    grid, networks = ("prompts", "achieved_test"), ("start_theta", "made_theta", "sgd_theta")
    sections = (
        ("zoo", "The zoo", _zoo, ()),
        ("prompts", "Prompted and achieved", _prompts, (*grid, "retrieved_test")),
        ("sgd", "One update against SGD", _against_sgd, ("steps", "sgd_steps", *one)),
        ("distances", "Is it new?", _distances, ("distance_generated", "distance_held_out")),
        ("weights", "The weights", _weights, (*grid, *networks, *one)),
        ("training", "Training the generator", _training, ()),
        ("numbers", "All numbers", _numbers, ()),
    )
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{_or_note(e, content, needs)}</section>\n'
        for name, title, content, needs in sections
    )
    task = html.escape(zoo.header.task)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{task}: thetaforge report</title>
<style>{plots.style_sheet()}</style>
</head>
<body>
<header><div>
<h1><b>θ</b> {task}</h1>
<p class="kind">thetaforge report: a zoo of checkpoints, the generator that learned from it, and its worth</p>
<p class="verdict">{_verdict(e)}</p>
{_control(e)}
<div class="cards">{_cards(e)}</div>
<nav>{links}</nav>
</div></header>
<main>
{body}</main>
<footer>Test metrics and held-out runs throughout; validation metrics are what prompts are about.</footer>
</body>
</html>
"""


def _or_note(e: Evidence, content: Callable[[Evidence], str], needs: Sequence[str]) -> str:
    missing = ", ".join(html.escape(name) for name in needs if not e.has(name))
    return f'<p class="note">Left out: the evaluation holds no {missing}.</p>' if missing else content(e)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _words(value: float, levels: Mapping[float, str]) -> str:
    return next(words for least, words in levels.items() if value >= least)


def _steps(result: Mapping[str, Any]) -> str:
    """The equivalent steps in words, "18 of 450" or "more than 450"; empty if they are not known."""
    steps, total = result.get("sgd_equivalent_steps"), show(result.get("sgd_total_steps"))
    if steps is None or math.isnan(steps):
        return ""
    if math.isinf(steps):
        return f"more than {total}"
    return f"{'less than 1' if steps < 1 else f'{steps:,.0f}' if steps >= 9.5 else f'{steps:.1f}'} of {total}"


def _label(column: str) -> str:
    return html.escape(column.replace("_", " "))


def _verdict(e: Evidence) -> str:
    r, task, steps = e.result, html.escape(e.zoo.header.task), _steps(e.result)
    alignment, ratio = _finite(r.get("prompt_alignment")), _finite(r.get("distance_ratio"))
    does, new = "have no prompt alignment", "whether they are new was not measured"
    if alignment is not None:
        does = f"<b>{_words(alignment, FOLLOWS)}</b> (alignment {show(alignment, 3)})"
    if ratio is not None:
        new = (
            f"they lie <b>{show(ratio, 3)} times as far</b> from the nearest training checkpoint as held-out "
            f"SGD networks of the same quality ({_words(ratio, NEWNESS)})"
        )
    worth = (
        f"one update equals <b>{steps} SGD steps</b>"
        if steps
        else "an update's worth in SGD steps is unknown"
    )
    return f"Made in one update, networks for {task} {does}; {new}; and prompted for the best, {worth}."


def _control(e: Evidence) -> str:
    alignment = show(e.result.get("retrieval_prompt_alignment"), 3)
    return f"""<p class="control"><b>The control.</b> Looking up the training checkpoint whose metric is
nearest the prompt reaches an alignment of <b>{alignment}</b> without generating anything. Prompt alignment
alone is therefore no evidence of generation: it counts together with the distance to the training
checkpoints, which is 0 for whatever is looked up.</p>"""


def _cards(e: Evidence) -> str:
    r, zoo = e.result, zoo_summary(e.zoo)
    column = "test_error" if "one_update_test_error" in r else e.column
    one, end = (show(r.get(f"{kind}_{column}"), 3, column=column) for kind in ("one_update", "sgd_final"))
    spread = r.get("prompt_alignment_std_over_seeds")
    alignment = show(r.get("prompt_alignment"), 3) + (
        "" if spread is None else f" <small>± {show(spread, 1)}</small>"
    )
    asked = f"{show(r.get('num_networks'))} networks, {show(r.get('num_seeds'))} seeds; retrieval "
    steps, _, total = _steps(r).replace("more than", "&gt;").replace("less than", "&lt;").partition(" of ")
    worth = (steps or "-") + (f" <small>of {total}</small>" if total else "")
    made = f"{zoo['checkpoints']:,} checkpoints of {zoo['parameters']:,} parameters"
    cards = (
        ("Prompt alignment", alignment, asked + show(r.get("retrieval_prompt_alignment"), 3)),
        (f"{_label(column).capitalize()}, one update", one, f"after all of SGD {end}"),
        ("One update equals", worth, f"SGD steps to the same {_label(e.column)}, median"),
        (
            "Distance ratio",
            show(r.get("distance_ratio"), 3),
            "generated : held-out; 1 is as new as a new run",
        ),
        ("Zoo", f"{zoo['runs']:,} <small>runs</small>", made),
    )
    return "".join(
        f'<div class="card"><p>{title}</p><p class="value">{value}</p><p>{below}</p></div>'
        for title, value, below in cards
    )


def _zoo(e: Evidence) -> str:
    z, header = zoo_summary(e.zoo), e.zoo.header
    facts = [
        ("Runs", f"{z['runs']:,} of {z['planned_runs']:,}, {z['diverged_runs']:,} diverged"),
        ("Held out", f"{header.num_runs - e.generator.origin.num_training_runs:,} runs, never trained on"),
        ("Checkpoints", f"{z['checkpoints']:,} of {z['parameters']:,} parameters, {z['dtype']}"),
        ("Size", f"{z['bytes'] / 1e6:,.1f} MB in {z['shards']:,} of {z['planned_shards']:,} shards"),
    ]
    facts += [
        (name.capitalize(), text) for name, text in recipe_facts(header.plan, e.zoo.read_runs()).items()
    ]
    facts += [
        (f"Last {_label(name)}", " to ".join(show(v[key], 3, column=name) for key in ("min", "max")))
        for name, v in z["final"].items()
        if name.startswith("test_")
    ]
    tested = [e.column, *sorted(n for n in header.metrics if n.startswith("test_") and n != e.column)]
    curves = [
        (
            plots.sgd_curves(e.arrays["steps"], e.arrays[f"sgd_{name}"], name.replace("_", " ")),
            f"{_label(name).capitalize()} of {len(e.arrays[f'sgd_{name}'])} held-out SGD runs.",
        )
        for name in tested
        if e.has("steps", f"sgd_{name}")
    ]
    intro = "<p>Every run is kept as a row of checkpoints; the generator learns from pairs of them.</p>"
    middle = (len(facts) + 1) // 2
    halves = table(*facts[:middle]), table(*facts[middle:])
    return f'{intro}{figures(*curves)}<div class="figures">{"".join(halves)}</div>'


def _prompts(e: Evidence) -> str:
    prompts, achieved, retrieved = (e.arrays[name] for name in ("prompts", "achieved_test", "retrieved_test"))
    alignment = torch.cat([prompt_alignment(p, o) for p, o in zip(prompts, achieved, strict=True)])
    below = int((alignment < -1).sum())
    seeds, networks, num_prompts = prompts.shape
    intro = f"""<p>{networks} held-out initialisations with {num_prompts} prompts each, from the best
validation {html.escape(e.generator.metric)} towards their own, {seeds} times with other noise. What they
achieve is measured on the test split, so that not even the control is exact.</p>"""
    return intro + figures(
        (
            plots.prompted_achieved(prompts, achieved, retrieved, e.column.replace("_", " ")),
            "Points are single networks, lines medians, bands 80 % of networks; retrieved: the control.",
        ),
        (
            plots.alignments(alignment, prompt_alignment(prompts[0], retrieved)),
            "Alignment of each network and seed: 1 is exactly as prompted, 0 as good as always the mean."
            + (f" The first bin holds {below} below -1." if below else ""),
        ),
    )


def _against_sgd(e: Evidence) -> str:
    r, a, reached = e.result, e.arrays, e.arrays[f"one_update_{e.column}"]
    rows = []
    for column in (name for name in e.zoo.header.metrics if name.startswith("test_")):
        start = a[f"sgd_{column}"][:, 0].mean().item() if e.has(f"sgd_{column}") else None
        values = [start, *(r.get(f"{kind}_{column}") for kind in ("one_update", "sgd_final", "retrieval"))]
        rows.append((_label(column), *(show(value, column=column) for value in values)))
    equivalent, worth = a["sgd_steps"][reached.isfinite()], _steps(r) or "an unknown number of"
    curve, crossing = a[f"sgd_{e.column}"], _finite(r.get("sgd_equivalent_steps"))
    label = e.column.replace("_", " ")
    level = plots.sgd_curves(a["steps"], curve, label, reached=reached, equivalent=crossing)
    series = [("made", "one update, networks and seeds", equivalent)]
    last, never = int(a["steps"][-1]), int(equivalent.isinf().sum())
    return (
        f"<p>The same starts, updated once with prompt {show(r.get('best_prompt'))}, and trained by SGD.</p>"
        + figures(
            (level, f"One update (median and middle half) equals {worth} SGD steps, median."),
            (
                plots.shares("equivalents", series, "SGD steps to be as good", last),
                "Share of networks whose SGD run was as good after so many steps"
                + (f"; {never} of {len(equivalent)} never were." if never else "."),
            ),
        )
        + table(*rows, heads=("Mean", "start", "one update", f"SGD, {last:,} steps", "retrieval"))
    )


def _distances(e: Evidence) -> str:
    made, held_out = e.arrays["distance_generated"], e.arrays["distance_held_out"]
    medians = [show(e.result.get(f"distance_{name}")) for name in ("generated", "held_out")]
    series = [("sgd", "held-out SGD networks", held_out), ("made", "generated networks", made)]
    facts = table(
        ("Generated, best prompt", medians[0]),
        ("Held-out SGD, equal metric", medians[1]),
        ("Closer than their yardstick", f"{int((made < held_out).sum())} of {len(made)} generated networks"),
        heads=("Median distance", ""),
    )
    svg = plots.shares("distances", series, "distance to the nearest training checkpoint")
    return f"""<p>L2 distance of parameters to the nearest of all training checkpoints, the least over all
orders of the hidden units. The yardstick of each generated network is a checkpoint of the same validation
metric that SGD made in a held-out run. A curve far left of it is copying, far right is where SGD does not
go.</p>
<div class="figures"><figure>{svg}</figure>{facts}</div>"""


def _weights(e: Evidence) -> str:
    a, spec, column = e.arrays, e.generator.coordinates.spec, e.column
    last = a["made_theta"].shape[1] - 1
    chosen = sorted({round(last * i / (PROMPTS_SHOWN - 1)) for i in range(PROMPTS_SHOWN)}, reverse=True)
    rows = []
    for n in range(min(NETWORKS_SHOWN, len(a["start_theta"]))):
        before, after = (show(value, 3, column=column) for value in a[f"sgd_{column}"][n, [0, -1]].tolist())
        row = [(before, plots.picture(spec, a["start_theta"][n]))]
        for k in chosen:
            pair = (show(a[name][0, n, k].item(), 3, column=column) for name in ("prompts", "achieved_test"))
            row.append((" → ".join(pair), plots.picture(spec, a["made_theta"][n, k])))
        rows.append([*row, (after, plots.picture(spec, a["sgd_theta"][n]))])
    between = [""] * (len(chosen) - 2)
    svg, scale = plots.weights(rows, ["start", "worst prompt", *between, "best prompt", "SGD's end"])
    what = next((name for name, _, shape in spec.slices() if len(shape) >= 2), "theta")
    caption = (
        f"<code>{html.escape(what)}</code> of held-out networks, one a row, on one scale: -{scale:.2g}"
        f'<span class="scale"></span>{scale:.2g}. Below: {_label(column)}, or prompted → achieved.'
    )
    return (
        "<p>From the same start: generated for better and better prompts, and where SGD went.</p>"
        f'<figure><div class="scroll">{svg}</div><figcaption>{caption}</figcaption></figure>'
    )


def _training(e: Evidence) -> str:
    g, config, curve = e.generator, e.generator.model.config, e.curve
    kept = ", ".join(f"{name}: {len(layer.scale)} directions" for name, layer in g.coordinates.layers.items())
    low, high = (show(value) for value in g.scaling.metric_range)
    rows = [
        ("Model", f"WeightDiT, {sum(p.numel() for p in g.model.parameters()):,} parameters"),
        ("Size", f"width {config.width}, depth {config.depth}, {config.heads} heads"),
        ("Coordinates", html.escape(kept) or "parameters as they are"),
        ("Prompts", f"{_label(g.origin.prompted)} ({html.escape(g.origin.objective)}), seen {low} to {high}"),
        ("Learned from", f"{g.origin.num_training_runs:,} runs"),
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


def _numbers(e: Evidence) -> str:
    origin, header = e.generator.origin, e.zoo.header
    packages = ("thetaforge", "torch", "numpy", "matplotlib")
    versions = {"Python": platform.python_version()} | {
        name: found.version for name in packages for found in importlib.metadata.distributions(name=name)
    }
    numbers = [(f"<code>{html.escape(k)}</code>", show(v), _meaning(k)) for k, v in e.result.items()]
    folded = table(*numbers, heads=("name", "value", "meaning"))
    return f"<details><summary>{len(numbers)} numbers of the evaluation</summary>{folded}</details>" + table(
        ("Task", html.escape(origin.task)),
        ("Zoo", f"<code>{html.escape(str(e.zoo.path))}</code>"),
        ("Zoo header, SHA-256", f"<code>{html.escape(origin.zoo_sha256)}</code>"),
        ("Networks", f"{header.spec.D:,} parameters, spec <code>{header.spec.id}</code>"),
        ("Sampling", f"{show(e.result.get('sampler'))}, {show(e.result.get('sampling_steps'))} steps"),
        ("Versions", html.escape(", ".join(f"{name} {version}" for name, version in versions.items()))),
    )


def _meaning(key: str) -> str:
    for prefix, suffix, text in MEANINGS_BY_METRIC:
        if key not in MEANINGS and key.startswith(prefix) and key.endswith(suffix):
            return text.format(_label(key.removeprefix(prefix).removesuffix(suffix)))
    return MEANINGS.get(key, "")
