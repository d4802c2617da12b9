"""The report: what a zoo, its generator and their evaluation amount to, in one HTML file to read offline."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ckpt_factory.card import recipe_facts, zoo_summary
from ckpt_factory.words import counted
from ckpt_factory.zoo import Zoo

from ..artefact import WeightGenerator
from ..evaluation.evaluate import prompt_alignment
from . import plots, sections, suite_sections
from .evidence import Evidence, label
from .plots import figures, show, table, with_spread

OBEYS = 0.4
FOLLOWS = {
    0.95: "do almost exactly as prompted",
    0.8: "do largely as prompted",
    OBEYS: "follow their prompts loosely",
    -math.inf: "do not do as prompted",
}
NEWNESS = {
    1.25: "no copies, though perhaps off the region that training visits",
    0.8: "new networks rather than copies",
    0.4: "partly remembered, partly new",
    -math.inf: "copies of training checkpoints, or nearly so",
}
"""Verdicts by the least prompt alignment, or distance ratio, that they take."""


def render_report(
    zoo: Zoo,
    generator: WeightGenerator,
    result: dict[str, Any],
    arrays: dict[str, Tensor],
    curve: list[dict[str, float | int]],
    film: bytes | None = None,
) -> str:
    """One HTML document that refers to nothing outside; the same input gives the same bytes.

    `film` is a GIF of what was made, for tasks that can be watched.

    A section whose arrays are missing says so. The zoo needs one finished shard at least.
    """
    e = Evidence(zoo, generator, result, arrays, curve)
    one, ood = (f"one_update_{e.column}", f"sgd_{e.column}"), f"ood_own_{e.column}"
    grid, networks = ("prompts", "achieved_test"), ("start_theta", "made_theta", "sgd_theta")
    chapters = (
        ("zoo", "The zoo", _zoo, ()),
        ("prompts", "Prompted and achieved", _prompts, (*grid, "retrieved_test")),
        *([("film", "Watch them", lambda e: sections.film(film), ())] if film else []),
        ("sgd", f"One update against {e.rival}", _against_sgd, ("steps", "sgd_steps", *one)),
        *([("recursion", "Starts unlike the zoo's", sections.recursion, ())] if e.has(ood) else []),
        *suite_sections.chapters(e),
        ("distances", "Is it new?", sections.distances, ("distance_generated", "distance_held_out")),
        *([("audit", "Is it more than copies and noise?", sections.audit, ())] if e.audited else []),
        ("weights", "The weights", sections.weights, (*grid, *networks, *one)),
        ("training", "Training the generator", sections.training, ()),
        ("numbers", "All numbers", sections.numbers, ()),
    )
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _, _ in chapters)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{_or_note(e, content, needs)}</section>\n'
        for name, title, content, needs in chapters
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
<p class="kind">thetaforge report: a zoo of checkpoints, {_generator(e)}, and its worth</p>
<p class="verdict">{_verdict(e)}</p>{_released(e)}
{_control(e)}{_audit(e)}
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


def _env_steps(result: Mapping[str, Any]) -> str:
    """What those cost, "14,000 of 41,000 environment steps"; empty where there is no environment."""
    taken, total = result.get("sgd_equivalent_env_steps"), result.get("sgd_total_env_steps")
    if taken is None or total is None or math.isnan(taken):
        return ""
    share = f"{taken:,.0f} of {total:,}" if math.isfinite(taken) else f"more than {total:,}"
    return f"{share} environment steps"


def _verdict(e: Evidence) -> str:
    r, task, steps = e.result, html.escape(e.zoo.header.task), _steps(e.result)
    alignment, ratio = _finite(r.get("prompt_alignment")), _finite(r.get("distance_ratio"))
    does, new = "have no prompt alignment", "whether they are new was not measured"
    if alignment is not None:
        does = f"<b>{_words(alignment, FOLLOWS)}</b> (alignment {show(alignment, 3)})"
    if ratio is not None:
        obeys = alignment is not None and alignment >= OBEYS
        means = _words(ratio, NEWNESS) if obeys else "which is easy for networks that do not do as prompted"
        new = (
            f"they lie <b>{show(ratio, 3)} times as far</b> from the nearest training checkpoint as held-out "
            f"{e.rival} networks of the same quality ({means})"
        )
    taking = f", which take <b>{_env_steps(r)}</b>" if _env_steps(r) else ""
    worth = (
        f"one update equals <b>{steps} {e.rival} steps</b>{taking}"
        if steps
        else f"an update's worth in {e.rival} steps is unknown"
    )
    return f"Made in one update, networks for {task} {does}; {new}; and prompted for the best, {worth}."


def _generator(e: Evidence) -> str:
    judged = e.generator.origin.released
    return "a released generator judged on it" if judged else "the generator that learned from it"


def _released(e: Evidence) -> str:
    origin = e.generator.origin
    if not origin.released:
        return ""
    return f"""
<p class="control"><b>A released model.</b> This is {origin.released} of Peebles et al. (2022), imported.
Training runs and training checkpoints are here those of this zoo that are not held out.
Held-out runs: {html.escape(origin.held_out_means)}.</p>"""


def _control(e: Evidence) -> str:
    alignment = show(e.result.get("retrieval_prompt_alignment"), 3)
    return f"""<p class="control"><b>The control.</b> Looking up the training checkpoint whose metric is
nearest the prompt reaches an alignment of <b>{alignment}</b> without generating anything. Prompt alignment
alone is therefore no evidence of generation: it counts together with the distance to the training
checkpoints, which is 0 for whatever is looked up.</p>"""


def _audit(e: Evidence) -> str:
    if "audit_verdict" not in e.result:
        return ""
    gate = "passes" if e.result.get("audit_passes") else "fails"
    return f"""
<p class="control"><b>The audit {gate}.</b> {html.escape(str(e.result["audit_verdict"]))}</p>"""


def _counted(e: Evidence, what: str) -> str:
    number = e.result.get(f"num_{what}s")
    return f"- {what}s" if number is None else counted(number, what)


def _cards(e: Evidence) -> str:
    r, zoo = e.result, zoo_summary(e.zoo)
    column = "test_error" if "one_update_test_error" in r else e.column
    one, end = (show(r.get(f"{kind}_{column}"), 3, column=column) for kind in ("one_update", "sgd_final"))
    alignment = with_spread(r.get("prompt_alignment"), r.get("prompt_alignment_std_over_seeds"))
    asked = f"{_counted(e, 'network')}, {_counted(e, 'seed')}; retrieval "
    steps, _, total = _steps(r).replace("more than", "&gt;").replace("less than", "&lt;").partition(" of ")
    worth = (steps or "-") + (f" <small>of {total}</small>" if total else "")
    made = f"{zoo['checkpoints']:,} checkpoints of {zoo['parameters']:,} parameters"
    cards = (
        ("Prompt alignment", alignment, asked + show(r.get("retrieval_prompt_alignment"), 3)),
        (f"{label(column).capitalize()}, one update", one, f"after all of {e.rival} {end}"),
        (
            "One update equals",
            worth,
            f"{e.rival} steps to the same {label(e.column)}, median{_after_colon(_env_steps(r))}",
        ),
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
    z, header, origin = zoo_summary(e.zoo), e.zoo.header, e.generator.origin
    facts = [
        ("Runs", f"{z['runs']:,} of {z['planned_runs']:,}, {z['diverged_runs']:,} diverged"),
        ("Held out", f"{header.num_runs - origin.num_training_runs:,} runs, {origin.held_out_means}"),
        ("Checkpoints", f"{z['checkpoints']:,} of {z['parameters']:,} parameters, {z['dtype']}"),
        ("Size", f"{z['bytes'] / 1e6:,.1f} MB in {z['shards']:,} of {z['planned_shards']:,} shards"),
    ]
    facts += [
        (name.capitalize(), text) for name, text in recipe_facts(header.plan, e.zoo.read_runs()).items()
    ]
    facts += [
        (f"Last {label(name)}", " to ".join(show(v[key], 3, column=name) for key in ("min", "max")))
        for name, v in z["final"].items()
        if name in e.tested
    ]
    curves = [
        (
            plots.sgd_curves(e.arrays["steps"], e.arrays[f"sgd_{name}"], name.replace("_", " "), e.rival),
            f"{label(name).capitalize()} of {len(e.arrays[f'sgd_{name}'])} held-out {e.rival} runs.",
        )
        for name in e.tested
        if e.has("steps", f"sgd_{name}")
    ]
    intro = "<p>Every run is kept as a row of checkpoints; the generator learns from pairs of them.</p>"
    middle = (len(facts) + 1) // 2
    halves = table(*facts[:middle]), table(*facts[middle:])
    return f'{intro}{figures(*curves)}<div class="figures">{"".join(halves)}</div>'


def _prompts(e: Evidence) -> str:
    prompts, achieved, retrieved = (e.arrays[name] for name in ("prompts", "achieved_test", "retrieved_test"))
    alignment = torch.cat([prompt_alignment(p, o) for p, o in zip(prompts, achieved, strict=True)])
    below, mean = int((alignment < -1).sum()), float(alignment.mean())
    seeds, networks, num_prompts = prompts.shape
    times = f", {seeds} times with other noise" if seeds > 1 else ""
    intro = f"""<p>{counted(networks, "held-out initialisation")} with {counted(num_prompts, "prompt")} each,
from the best validation {html.escape(e.generator.metric)} towards their own{times}. What they achieve is
measured on the test split, so that not even the control is exact.</p>"""
    return intro + figures(
        (
            plots.prompted_achieved(prompts, achieved, retrieved, e.column.replace("_", " ")),
            "Points are single networks, lines medians, bands 80 % of networks; retrieved: the control.",
        ),
        (
            plots.alignments(alignment, prompt_alignment(prompts[0], retrieved)),
            "Alignment of each network and seed: 1 is exactly as prompted, 0 as good as always the mean."
            + (f" The first bin holds {below} below -1; the mean is {show(mean, 3)}." if below else ""),
        ),
    )


def _in_words(e: Evidence) -> str:
    """Of policies: what one update reaches, what that costs otherwise, and what looking up would give."""
    if not _env_steps(e.result):
        return ""
    made, looked_up = (show(e.result.get(f"{kind}_{e.column}"), 3) for kind in ("one_update", "retrieval"))
    return f""" Prompted for {show(e.result.get("best_prompt"))}, a policy made in one update returns
{made} in the mean. {e.rival} takes {_env_steps(e.result)} from the same start until its policy returns as
much (median). The control, a training policy looked up for the same prompt, returns {looked_up} and
generates nothing."""


def _after_colon(text: str) -> str:
    return f": {text}" if text else ""


def _against_sgd(e: Evidence) -> str:
    r, a, reached = e.result, e.arrays, e.arrays[f"one_update_{e.column}"]
    rows = []
    for column in e.tested:
        start = a[f"sgd_{column}"][:, 0].mean().item() if e.has(f"sgd_{column}") else None
        values = [start, *(r.get(f"{kind}_{column}") for kind in ("one_update", "sgd_final", "retrieval"))]
        rows.append((label(column), *(show(value, column=column) for value in values)))
    equivalent, worth = a["sgd_steps"][reached.isfinite()], _steps(r) or "an unknown number of"
    curve, crossing = a[f"sgd_{e.column}"], _finite(r.get("sgd_equivalent_steps"))
    title = e.column.replace("_", " ")
    level = plots.sgd_curves(a["steps"], curve, title, e.rival, reached=reached, equivalent=crossing)
    series = [("made", "one update, networks and seeds", equivalent)]
    last, never = int(a["steps"][-1]), int(equivalent.isinf().sum())
    return (
        f"<p>The same starts, updated once with prompt {show(r.get('best_prompt'))}, and trained by "
        f"{e.rival}.{_in_words(e)}</p>"
        + figures(
            (
                level,
                f"One update (median and middle half) equals {worth} {e.rival} steps, median"
                f"{_after_colon(_env_steps(r))}.",
            ),
            (
                plots.shares("equivalents", series, f"{e.rival} steps to be as good", last),
                f"Share of networks whose {e.rival} run was as good after so many steps"
                + (f"; {never} of {len(equivalent)} never were." if never else "."),
            ),
        )
        + table(*rows, heads=("Mean", "start", "one update", f"{e.rival}, {last:,} steps", "retrieval"))
    )
