"""Sections of the report about the evaluation's further parts, those that were made."""

import base64
import html
import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from ..evaluation.amortise import WAYS
from ..evaluation.finetune import KINDS
from ..evaluation.recipe import better
from ..evaluation.rivals import known_rivals
from ..medians import median, quartiles
from . import plots, suite_plots
from .evidence import Evidence, label
from .pictures import picture
from .pictures import weights as draw
from .plots import figures, show, table, with_spread

NAMES = {"sgd": "SGD", "adamw": "AdamW", "lion": "Lion", "tiger": "Tiger", "amos": "Amos"}
STRIP = 8
"""Networks of a walk that are shown side by side."""

Chapter = tuple[str, str, Callable[[Evidence], str], tuple[str, ...]]


def chapters(e: Evidence) -> list[Chapter]:
    """Those whose parts the evaluation has, as (id, title, content, arrays that it needs)."""
    known: list[tuple[str, Chapter]] = [
        (
            f"rival_generator_{e.column}",
            ("rivals", "Against other optimizers", rivals, ("rival_sgd_steps",)),
        ),
        (
            f"together_{e.generator.metric}_prompts",
            ("several", "Several metrics", several, ()),
        ),
        ("beyond_prompts", ("beyond", "Beyond the best", beyond, (f"beyond_{e.column}",))),
        ("hole_prompts", ("hole", "What was never seen", hole, (f"hole_{e.column}",))),
        ("finetune_epochs", ("finetune", "As an initialisation", fine_tuning, ())),
        ("cost_steps", ("cost", "When it has paid for itself", cost, ("break_even_alone",))),
        ("walk_theta", ("walk", "A walk through the noise", walk, (f"walk_{e.column}",))),
    ]
    return [chapter for needed, chapter in known if e.has(needed)]


def several(e: Evidence) -> str:
    """Each metric prompted alone, and all together."""
    main, *others = e.generator.metrics
    drawn, rows = [], []
    for name in (main, *others):
        alone = "" if name == main else f"channel_{name}_"
        for what, prefix in (("alone", alone), ("together", f"together_{name}_")):
            values = [e.result.get(f"{prefix}{key}prompt_alignment") for key in ("", "retrieval_")]
            spread = e.result.get(f"{prefix}prompt_alignment_std_over_seeds")
            ours = with_spread(values[0], spread)
            chance = e.result.get(f"{prefix}without_its_prompt")
            rows.append((f"{label(name)}, {what}", ours, show(values[1], 3), show(chance, 3)))
    for name, prefix in [(name, f"channel_{name}") for name in others] + [
        (name, f"together_{name}") for name in (main, *others)
    ]:
        asked, got, looked = (
            e.arrays[f"{prefix}_{key}"] for key in ("prompts", "achieved_test", "retrieved_test")
        )
        asked = asked.expand(got.shape)
        svg = plots.prompted_achieved(asked, got, looked, f"test {name.replace('_', ' ')}", name=prefix)
        how = "all prompted at once" if prefix.startswith("together") else "prompted by itself"
        drawn.append((svg, f"{label(name).capitalize()}, {how}."))
    heads = ("Prompt alignment", "generated", "retrieval", "without its prompt")
    words = ", ".join(label(name) for name in (main, *others))
    return f"""<p>This generator may be prompted for {words}, any of them alone or together. Together, each
{label(main)} is prompted with what the training checkpoint of the nearest {label(main)} has of the others,
which some network can have. Without its prompt: how well the same {" and ".join(map(label, others))} would
be met with {label(main)} alone prompted.</p>
{table(*rows, heads=heads)}{figures(*drawn)}"""


def rivals(e: Evidence) -> str:
    """Updates in a row against as many steps of other optimizers."""
    names, own = known_rivals(e.arrays), e.arrays[f"rival_generator_{e.column}"]
    curves = {"generator": own}
    curves |= {NAMES[name]: e.arrays[f"rival_{name}_{e.column}"] for name in names}
    updates = own.shape[1] - 1

    def middle(values: Tensor, at: int) -> str:
        return show(median(values[:, at]).item(), 3, column=e.column)

    rows = [("generator", middle(own, 1), middle(own, updates), "1", "-")]
    for name in names:
        curve, steps = e.arrays[f"rival_{name}_{e.column}"], e.arrays[f"rival_{name}_steps"]
        never = int(steps.isinf().sum())
        few, many = map(_count, quartiles(steps))
        needed = f"{_count(median(steps).item())} <small>{few} to {many}</small>"
        needed += f" <small>({never} of {len(steps)} never)</small>" if never else ""
        lr = show(e.result.get(f"rival_{name}_lr"), 2)
        rows.append((NAMES[name], middle(curve, 1), middle(curve, updates), needed, lr))
    heads = ("Median", "1 step", f"{updates} steps", "steps for one update's worth", "rate, as of SGD")
    medians = median(own, 0).tolist()
    best = better(e.generator.origin.objective, medians)
    return f"""<p>The generator, prompted for the best {label(e.generator.metric)} again and again, and as
many steps of optimizers from the same {len(own)} held-out starts by the zoo's recipe. For every number of
steps each optimizer has the constant learning rate that was best there on training initialisations. The
steps for what one update gives are counted in runs as long as the zoo's, at the rate that was the soonest
there; beside their median the middle half. The generator is best after update {best},
{show(medians[best], 3, column=e.column)}.</p>
<div class="figures"><figure>{suite_plots.rivals(curves, e.column.replace("_", " "))}<figcaption>Medians; of
the generator the middle half, too.</figcaption></figure>{table(*rows, heads=heads)}</div>"""


def beyond(e: Evidence) -> str:
    """Prompts beyond the best metric of the zoo."""
    r, prompts = e.result, e.arrays["beyond_prompts"]
    zoo = r.get(f"beyond_zoo_{e.column}")
    svg = suite_plots.prompted(
        "beyond",
        prompts,
        e.arrays[f"beyond_{e.column}"],
        (f"prompted {e.generator.metric}", e.column.replace("_", " ")),
        level=None if zoo is None else ("the zoo's best", zoo),
    )
    best, network = (r.get(f"beyond_{kind}_{e.column}") for kind in ("best", "best_network"))
    better = r.get("beyond_share_better")
    facts = table(
        ("Zoo's best checkpoint", show(zoo, column=e.column)),
        (
            f"Best prompt, {show(r.get('beyond_best_prompt'))}",
            f"{show(best, column=e.column)}, median of {len(e.arrays[f'beyond_{e.column}'])} networks",
        ),
        ("Better than the zoo's best", "-" if better is None else f"{better:.0%} of them"),
        ("Best network of all prompts", show(network, column=e.column)),
        heads=(label(e.column).capitalize(), ""),
    )
    end = ""
    if e.generator.origin.objective == "max":
        end = " It does not know the largest there can be: prompts may lie beyond that, too."
    return f"""<p>From the best {label(e.generator.metric)} that any training run has, towards
{prompts[-1].item():.3g}: nobody has shown the generator such networks.{end} These prompts are asked for as
they are, not calibrated. Validation metrics choose the prompt, the network and the zoo's checkpoint; these
are their test metrics.</p>
<div class="figures"><figure>{svg}<figcaption>Medians and 80 % of networks, the same noise for all prompts.
</figcaption></figure>{facts}</div>"""


def hole(e: Evidence) -> str:
    """Prompts in an interval of the metric that the generator has never seen."""
    r, prompted = e.result, e.generator.origin.prompted
    between = _number(e, "hole_low"), _number(e, "hole_high")
    svg = suite_plots.prompted(
        "hole",
        e.arrays["hole_prompts"],
        e.arrays[f"hole_{e.column}"],
        (f"prompted {e.generator.metric}", e.column.replace("_", " ")),
        looked_up=e.arrays["hole_retrieved"] if e.has("hole_retrieved") else None,
        hole=between,
    )
    hit = r.get("hole_share_hit")
    facts = table(
        (
            "Generated, prompts inside",
            with_spread(r.get("hole_error"), r.get("hole_error_std_over_networks")),
        ),
        (
            "Generated, prompts beside it",
            with_spread(r.get("hole_error_beside"), r.get("hole_error_beside_std_over_networks")),
        ),
        ("Retrieval, prompts inside", show(r.get("hole_error_retrieval"), 3)),
        ("Prompted inside and inside", "-" if hit is None else f"{hit:.0%} of networks"),
        heads=(f"Error of the {label(e.generator.metric)}, root mean square", ""),
    )
    return f"""<p>All {show(r.get("hole_left_out"))} training checkpoints with a {label(prompted)} between
{show(between[0])} and {show(between[1])} were left out of the training, as targets and as starts. Who only
remembers has nothing to give in there: looking up among what was learned from answers with one of its
edges.</p>
<div class="figures"><figure>{svg}<figcaption>Medians and 80 % of
networks.</figcaption></figure>{facts}</div>"""


def fine_tuning(e: Evidence) -> str:
    """Networks trained further, by what they started from."""
    epochs = e.arrays["finetune_epochs"].tolist()
    unit = "rollouts" if "sgd_total_env_steps" in e.result else "epochs"
    kinds = [kind for kind in KINDS if e.has(f"finetune_{kind}_{e.column}")]
    shown = [e.column, *(name for name in ("test_error",) if name in e.tested and name != e.column)]
    svgs = [
        (
            suite_plots.fine_tuning(
                epochs,
                {kind: e.arrays[f"finetune_{kind}_{name}"] for kind in kinds},
                name.replace("_", " "),
                unit,
            ),
            f"{label(name).capitalize()}, mean and standard deviation over networks.",
        )
        for name in shown
    ]
    last = shown[-1]
    rows = []
    for kind in kinds:
        values = e.arrays[f"finetune_{kind}_{last}"]
        mean, std = values.mean(0).tolist(), values.std(0, correction=0).tolist()
        cells = [
            f"{show(a, 3, column=last)} <small>± {show(b, 2, column=last)}</small>"
            for a, b in zip(mean, std, strict=True)
        ]
        rows.append((KINDS[kind], *cells))
    heads = (f"Mean {label(last)} after {unit}", *(f"{each:,}" for each in epochs))
    return f"""<p>{len(e.arrays[f"finetune_{kinds[0]}_{e.column}"])} networks of each kind, trained further
by the zoo's recipe, each length with the whole of its schedule, at its learning rate or 0.3 or 0.1 of it,
whichever validates best. Retrieved are the training checkpoints nearest the best prompt, one of a run;
trained are the moments of held-out runs whose validation metric is nearest to what was generated from the
same start.</p>{figures(*svgs)}{table(*rows, heads=heads)}"""


def cost(e: Evidence) -> str:
    """What generator and training cost, and after how many networks the one has paid for itself."""
    zoo, training, update = (_number(e, f"cost_{name}_s") for name in ("zoo", "training", "sampling"))
    prices = {way: _number(e, f"cost_step_{way}_s") for way in WAYS}
    even = {way: e.arrays[f"break_even_{way}"] for way in WAYS}
    quality, steps = e.arrays["cost_quality"], e.arrays["cost_steps"]
    finite = [x for x in (values[0].item() for values in even.values()) if math.isfinite(x)]
    svg = suite_plots.costs(
        zoo + training, update, prices, steps[0].item(), 10 * max(finite, default=1e5), e.rival
    )
    spent = table(
        ("Zoo", f"{show(zoo, 3)} s"),
        ("Training, all workers", f"{show(training, 3)} s"),
        ("One update of one network", f"{_seconds(update)}"),
        *((f"One {e.rival} step, {way}", _seconds(price)) for way, price in prices.items()),
        heads=("CPU time", ""),
    )
    chosen = np.unique(np.linspace(0, len(quality) - 1, min(6, len(quality))).round()).astype(int).tolist()
    rows = [
        (
            show(quality[k].item(), 3, column=e.column),
            _count(steps[k].item()),
            *(_networks(even[way][k].item()) for way in WAYS),
        )
        for k in chosen
    ]
    heads = (f"Median {label(e.column)} made", f"{e.rival} steps", *(f"pays after ({way})" for way in WAYS))
    never = ""
    if not math.isfinite(steps[0].item()):
        never = f" Half of the {e.rival} runs or more never get as good as what the best prompt makes."
    elif not finite:
        never = " For the best prompt it never does: an update costs more than the steps that it saves."
    ways = "; or ".join(f"{text} (<i>{way}</i>)" for way, text in WAYS.items())
    return f"""<p>A generator has to pay for its zoo and its training before it is cheaper than training
each network to the same quality.{never} The zoo's CPU time and that of its runs are as recorded when it was
made, updates and steps were timed for this evaluation. A network is trained {ways}.</p> <div
class="figures"><figure>{svg}<figcaption>All that so many networks cost, as good as those made for the best
prompt, {show(e.result.get("best_prompt"))}.</figcaption></figure>{spent}</div>{table(*rows, heads=heads)}"""


def walk(e: Evidence) -> str:
    """Networks along a loop of noises, from one start and for one prompt."""
    r, spec, theta = e.result, e.generator.coordinates.spec, e.arrays["walk_theta"]
    images = [picture(spec, each) for each in theta]
    shown = min(STRIP, len(images))
    some = [k * len(images) // shown for k in range(shown)]
    row = [(show(e.arrays[f"walk_{e.column}"][k].item(), 3, column=e.column), images[k]) for k in some]
    strip, scale = draw([row], [f"{360 * k / len(images):.0f}°" for k in some])
    gif = base64.b64encode(suite_plots.animation(images, scale)).decode()
    names = [e.generator.origin.prompted, e.column]
    metrics = {n.replace("_", " "): e.arrays[f"walk_{n}"] for n in names if e.has(f"walk_{n}")}
    own = r.get("walk_spread_own")
    note = ""
    if own is not None:
        note = f"""Its own sampling is one deterministic step, which gives the mean of the networks that fit
and hardly looks at the noise (spread {show(own, 2)}), so the walk is sampled in more. """
    what = next((name for name, _, shape in spec.slices() if len(shape) >= 2), "theta")
    return f"""<p>One held-out start, the prompt {show(r.get("walk_prompt"))}, and {len(theta)} noises on a
loop, sampled by ddim in {show(r.get("walk_steps"))} steps: nothing but the noise changes. {note}The
networks are {show(r.get("walk_spread"), 2)} times as far from their mean as they are from the start (root
mean squares).</p> <figure><div class="scroll">{strip}</div><figcaption><code>{html.escape(what)}</code>
along the walk, on one scale, -{scale:.2g}<span class="scale"></span>{scale:.2g}. Below:
{label(e.column)}.</figcaption></figure> <div
class="figures"><figure>{suite_plots.loop(metrics, e.generator.metric)}<figcaption>What the networks along
the loop achieve.</figcaption></figure><figure><img src="data:image/gif;base64,{gif}"
style="width:100%;
max-width:440px;image-rendering:pixelated" alt="weights along the walk"><figcaption>The
same weights, all {len(theta)} networks.</figcaption></figure></div>"""


def _number(e: Evidence, name: str) -> float:
    """A number of the result; NaN, which JSON knows none of, where it is null or missing."""
    value = e.result.get(name)
    return math.nan if value is None else float(value)


def _count(steps: float) -> str:
    return show(steps) if not math.isfinite(steps) else f"{steps:,.0f}" if steps >= 9.5 else f"{steps:.1f}"


def _networks(count: float) -> str:
    if math.isnan(count):
        return "-"
    return "never" if math.isinf(count) else f"{count:,.0f} networks"


def _seconds(value: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"
