"""The look of the report: style sheet, tables, and figures as inline SVG, for light and for dark pages."""

import html
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from torch import Tensor

THEME = {
    "ground": ("#ffffff", "#12161f"),
    "panel": ("#f6f7f9", "#181d29"),
    "ink": ("#1b2130", "#e8eaf0"),
    "muted": ("#5b6475", "#9aa3b5"),
    "grid": ("#e3e6ec", "#2c3342"),
    "made": ("#0f766e", "#2dd4bf"),
    "sgd": ("#c2570c", "#fb923c"),
    "looked": ("#7052c8", "#a78bfa"),
}
"""Colour by name on light and on dark ground: what the generator made, SGD, the retrieval control."""
LIGHT = {name: light for name, (light, _) in THEME.items()}
FRACTIONS = ("error", "accuracy", "copy_rate")
"""Metrics that read better in per cent."""
SIZE = (5.4, 3.7)
MOST_POINTS = 400

STYLE_SHEET = """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);-webkit-text-size-adjust:100%;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header>div,footer{max-width:1120px;margin:0 auto;padding:0 24px}
header{background:var(--panel);border-bottom:1px solid var(--grid);padding:40px 0 32px}
h1{font-size:2rem;line-height:1.2;margin:0 0 4px;letter-spacing:-.02em;overflow-wrap:anywhere}
h1 b{color:var(--made)} h2{font-size:1.4rem;letter-spacing:-.01em;margin:0 0 6px}
.kind,.control,section>p,figcaption,footer,.card p,.value small,tbody th,thead th{color:var(--muted)}
.kind{margin:0 0 18px} .verdict{font-size:1.2rem;line-height:1.5;max-width:60em;margin:0 0 16px}
.control{border-left:3px solid var(--looked);padding-left:14px;margin:0 0 24px;max-width:62em}
.control b{color:var(--ink)} section>p{max-width:62em;margin:0 0 18px}
.cards{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:12px}
.card{background:var(--ground);border:1px solid var(--grid);border-radius:10px;padding:14px 16px}
.card p{margin:0;font-size:.85rem;line-height:1.4}
.card .value{font-size:1.8rem;letter-spacing:-.02em;color:var(--ink);white-space:nowrap}
.value small{font-size:.52em;letter-spacing:0}
nav{font-size:.9rem;margin-top:22px;display:flex;flex-wrap:wrap;gap:4px 18px}
a{color:var(--made);text-decoration:none} a:hover{text-decoration:underline}
section{padding:40px 0 16px;border-bottom:1px solid var(--grid)}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:20px 32px;margin:8px 0 24px}
figure{margin:0;min-width:0;break-inside:avoid} figcaption{font-size:.85rem;line-height:1.45;margin-top:6px}
svg{width:100%;height:auto;display:block} svg *{stroke-linejoin:round;stroke-linecap:butt}
.scroll{overflow-x:auto} table{border-collapse:collapse;font-size:.92rem;width:100%;margin:8px 0 16px}
th,td{text-align:left;padding:7px 18px 7px 0;border-bottom:1px solid var(--grid);vertical-align:top}
tbody th{white-space:nowrap} td{font-variant-numeric:tabular-nums;overflow-wrap:break-word}
th{font-weight:500} .figures tbody th{white-space:normal}
.note{border:1px dashed var(--muted);border-radius:8px;padding:10px 14px}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
summary{cursor:pointer;font-weight:600;padding:6px 0} footer{font-size:.85rem;padding:16px 24px 40px}
.scale{display:inline-block;width:90px;height:10px;border-radius:2px;margin:0 6px;
background:linear-gradient(90deg,#053061,#4393c3,#f7f7f7,#d6604d,#67001f)}
@media(max-width:940px){.cards{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media(max-width:760px){main,header>div,footer{padding-left:16px;padding-right:16px}h1{font-size:1.6rem}
.verdict{font-size:1.08rem}.figures{grid-template-columns:minmax(0,1fr)}.scroll svg{width:760px}
.card .value{font-size:1.4rem}tbody th{white-space:normal}}
"""
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def style_sheet() -> str:
    """CSS of the page, in the colours of the reader's light or dark mode."""
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in THEME.items()) for i in (0, 1))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE_SHEET}"


def show(value: Any, digits: int = 4, *, column: str = "") -> str:
    """A number, text or nothing as escaped HTML; in per cent if it is of a column like test_error."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
        if column.endswith(FRACTIONS):
            return f"{100 * value:#.3g}".rstrip(".") + "\u00a0%"
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:#.{digits}g}".rstrip(".")
    if value is None or isinstance(value, str):
        return "-" if value is None else html.escape(value)
    return f"{value:,}" if isinstance(value, int) else html.escape(json.dumps(value, default=str))


def with_spread(value: float | None, spread: float | None) -> str:
    """A number with its spread, where that is known, as HTML."""
    return show(value, 3) + ("" if spread is None else f" <small>± {show(spread, 1)}</small>")


def table(*rows: Sequence[str], heads: Sequence[str] = ()) -> str:
    """A table of cells that are HTML already, the first of each row its head."""
    top = f"<thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>" if heads else ""
    lines = (
        f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows
    )
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def figures(*each: tuple[str, str]) -> str:
    """Figures with their captions, two in a row where there is room."""
    parts = (f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for svg, caption in each)
    return f'<div class="figures">{"".join(parts)}</div>'


def sgd_curves(
    steps: Int[Tensor, " S"],
    metric: Float[Tensor, "N S"],
    label: str,
    by: str = "SGD",
    *,
    reached: Float[Tensor, "seeds N"] | None = None,
    equivalent: float | None = None,
) -> str:
    """Learning curves of the zoo's runs; with `reached`, the level of one update and where it crosses."""
    columns = [finite_numbers(column) for column in metric.T]
    kept = [j for j, column in enumerate(columns) if column.size]
    x = np.log1p(steps.double().numpy()[kept])
    levels = np.array([np.quantile(columns[j], [0.1, 0.25, 0.5, 0.75, 0.9]) for j in kept]).reshape(-1, 5).T
    last = int(steps[-1])

    def paint(ax: Axes) -> None:
        ax.fill_between(x, levels[0], levels[4], color=LIGHT["sgd"], alpha=0.15, lw=0, label="80 % of runs")
        ax.fill_between(x, levels[1], levels[3], color=LIGHT["sgd"], alpha=0.25, lw=0, label="middle half")
        ax.plot(x, levels[2], color=LIGHT["sgd"], lw=2, label=f"{by}, median")
        _step_axis(ax, last)
        ax.set(xlabel=f"{by} step", ylabel=label)
        if reached is not None and finite_numbers(reached).size:
            low, level, high = np.quantile(finite_numbers(reached), [0.25, 0.5, 0.75])
            ax.axhspan(low, high, color=LIGHT["made"], alpha=0.15, lw=0)
            ax.axhline(level, color=LIGHT["made"], lw=2, label="one update")
            if equivalent is not None and math.isfinite(equivalent):
                _crossing(ax, math.log1p(equivalent), level, f"{equivalent:,.0f} steps")
        plain_log(ax, finite_numbers(metric), label)
        legend(ax)

    kind = "learning" if reached is None else "update"
    return _svg(f"{kind}-{label}", f"{label} of held-out {by} runs over steps", paint)


def prompted_achieved(
    prompts: Float[Tensor, "seeds N P"],
    achieved: Float[Tensor, "seeds N P"],
    retrieved: Float[Tensor, "N P"],
    label: str,
    *,
    name: str = "prompted",
) -> str:
    """Prompts against what the generated networks achieve, the retrieval control beside them.

    `name` is the figure's own on a page with several.
    """
    asked, got = _finite(prompts, achieved)
    asked_first, looked = _finite(prompts[0], retrieved)

    def paint(ax: Axes) -> None:
        everything = np.concatenate([asked, asked_first])
        low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
        pad = 0.06 * (high - low) or 1.0
        ax.plot([low, high], [low, high], color=LIGHT["muted"], lw=1, ls=(0, (4, 3)), label="as prompted")
        most = prompts.shape[-1]  # of so many prompts: of few, each has a bin
        _binned(ax, asked, got, "made", "generated", most)
        _binned(ax, asked_first, looked, "looked", "retrieved", most)
        seen = np.quantile(got, [0.005, 0.995]) if got.size else np.array([low, high])
        ax.set(xlim=(low - pad, high + pad), ylim=(min(low, seen[0]) - pad, max(high, seen[1]) + pad))
        ax.set(xlabel=f"prompted {label.removeprefix('test ')}", ylabel=f"achieved {label}")
        legend(ax)

    return _svg(name, f"prompted against achieved {label}", paint)


def alignments(made: Float[Tensor, " M"], retrieved: Float[Tensor, " N"]) -> str:
    """Prompt alignment of each network: a histogram from -1, below which all stand in the first bin."""
    values, control = finite_numbers(made), finite_numbers(retrieved)

    def paint(ax: Axes) -> None:
        lowest = float(np.floor(10 * max(-1.0, min(values.min(initial=0.9), 0.9))) / 10)
        bins = np.linspace(lowest, 1, 29).tolist()
        weights = np.full(len(values), 100 / max(1, len(values)))
        clipped = np.clip(values, lowest, 1)
        look = {"color": LIGHT["made"], "alpha": 0.75, "histtype": "stepfilled", "lw": 0}
        ax.hist(clipped, bins, weights=weights, label="generated", **look)
        for name, numbers, label in (("made", values, "their mean"), ("looked", control, "retrieval's mean")):
            if numbers.size:
                at = max(lowest, float(numbers.mean()))
                ax.axvline(at, color=LIGHT[name], lw=1.6, ls=(0, (4, 2)), label=label)
        ax.set(xlim=(lowest, 1), xlabel="prompt alignment of a network", ylabel="share of networks, %")
        ax.grid(axis="x", visible=False)
        legend(ax)

    return _svg("alignments", "distribution of the prompt alignment over networks", paint)


def shares(
    name: str, series: Sequence[tuple[str, str, Float[Tensor, " M"]]], label: str, last: int | None = None
) -> str:
    """Cumulative shares of networks, one curve for each (colour, title, values); it misses infinite ones.

    Args:
        last: values are steps up to this one, on a logarithmic axis.
    """

    def paint(ax: Axes) -> None:
        for colour, title, values in series:
            known = np.sort(values[~values.isnan()].double().numpy())
            x = known[np.isfinite(known)] if last is None else np.log1p(known[np.isfinite(known)])
            y = 100 * np.arange(1, len(x) + 1) / max(1, len(known))
            if len(x):
                end = x[-1] if last is None else max(x[-1], math.log1p(last))
                x, y = np.concatenate([x[:1], x, [end]]), np.concatenate([[0], y, y[-1:]])
                ax.step(x, y, where="post", color=LIGHT[colour], lw=2, label=title)
            if len(known) and math.isfinite(middle := float(np.median(known))):
                ax.plot(middle if last is None else math.log1p(middle), 50, "o", color=LIGHT[colour], ms=6)
        ax.axhline(50, color=LIGHT["muted"], lw=1, ls=(0, (4, 3)), zorder=0.5)
        ax.set(ylim=(0, 101), xlabel=label, ylabel="share of networks, %")
        ax.set_xlim(left=0)
        if last is not None:
            _step_axis(ax, last)
        legend(ax)

    return _svg(name, f"cumulative share of networks over {label}", paint)


def training_curve(curve: Sequence[dict[str, Any]], x: str, y: str, labels: tuple[str, str]) -> str:
    """One entry of the generator's training log over another."""
    points = [(entry[x], entry[y]) for entry in curve if x in entry and math.isfinite(entry.get(y, math.nan))]
    across, up = np.array(points, dtype=float).reshape(-1, 2).T

    def paint(ax: Axes) -> None:
        ax.plot(across, up, "o-" if len(points) < 30 else "-", color=LIGHT["made"], lw=1.8, ms=4)
        ax.set(xlabel=labels[0], ylabel=labels[1])
        if not plain_log(ax, up):
            ax.set_ylim(0, 1.1 * up.max(initial=0) or 1)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(plain_digits)

    return _svg(f"training-{y}", f"{labels[1]} over {labels[0]}", paint)


def recursion(curves: Mapping[str, Float[Tensor, "N U"]], label: str) -> str:
    """A metric over updates in a row, one curve for each kind of start: median and middle half."""
    colours = ("sgd", "made", "looked", "ink", "muted")

    def paint(ax: Axes) -> None:
        everything = []
        for colour, (title, values) in zip(colours, curves.items(), strict=False):
            kept = [finite_numbers(column) for column in values.T]
            x = [j for j, column in enumerate(kept) if column.size]
            low, middle, high = (
                np.array([np.quantile(kept[j], [0.25, 0.5, 0.75]) for j in x]).reshape(-1, 3).T
            )
            ax.fill_between(x, low, high, color=LIGHT[colour], alpha=0.15, lw=0)
            ax.plot(x, middle, "o-", color=LIGHT[colour], lw=2, ms=4, label=title)
            everything += [low, high]
        ax.set(xlabel="updates in a row", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_log(ax, np.concatenate(everything), label)
        legend(ax)

    return _svg("recursion", f"{label} over updates in a row", paint)


def finite_numbers(values: Tensor) -> np.ndarray:
    flat = values.double().flatten().numpy()
    return flat[np.isfinite(flat)]


def _finite(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    a, b = x.double().flatten().numpy(), y.double().flatten().numpy()
    keep = np.isfinite(a) & np.isfinite(b)
    return a[keep], b[keep]


def _crossing(ax: Axes, x: float, y: float, text: str) -> None:
    colour, right = LIGHT["made"], x > 0.6 * ax.get_xlim()[1]
    ax.vlines(x, 0, 1, transform=ax.get_xaxis_transform(), color=colour, lw=1, ls=":")
    ax.plot(x, y, "o", color=colour, ms=7)
    top = ax.transAxes.inverted().transform(ax.transData.transform((x, y)))[1] > 0.85  # the legend is above
    offset, side = (-9 if right else 9, -16 if top else 8), "right" if right else "left"
    ax.annotate(text, (x, y), offset, textcoords="offset points", ha=side, color=colour, weight="bold")


def _binned(ax: Axes, x: np.ndarray, y: np.ndarray, name: str, label: str, most: int) -> None:
    """Points, thinned out, and over at most so many bins of x the median and 80 % of y."""
    some = np.random.default_rng(0).permutation(len(x))[:MOST_POINTS]
    if name == "made":
        ax.plot(x[some], y[some], "o", color=LIGHT[name], alpha=0.25, mew=0, ms=3.5)
    if not len(x):
        return
    bins = np.array_split(np.argsort(x, kind="stable"), min(20, most, len(x)))
    at = [np.median(x[part]) for part in bins]
    low, middle, high = np.array([np.quantile(y[part], [0.1, 0.5, 0.9]) for part in bins]).T
    ax.fill_between(at, low, high, color=LIGHT[name], alpha=0.18, lw=0)
    ax.plot(at, middle, color=LIGHT[name], lw=2, label=label)


def _step_axis(ax: Axes, last: int) -> None:
    """Steps on the axis log(1 + step), in which equivalent steps are interpolated too."""
    ticks = [0, *(10**k for k in range(9) if 10**k < 0.6 * last), last]
    ax.set_xticks(np.log1p(ticks).tolist(), [f"{tick:,}" for tick in ticks])
    ax.set_xlim(0, math.log1p(last) * 1.01)


def plain_digits(value: float, _: Any = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def log_x_axis(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with numbers in plain digits, more of them where the values span little."""
    span = max(values) / min(values) if values else 10.0
    ax.set_xscale("log")
    subs = (1, 2, 3, 5) if span < 30 else (1, 3) if span < 300 else (1,)
    ax.xaxis.set_major_locator(MaxNLocator(5) if span < 5 else LogLocator(subs=subs, numticks=12))
    ax.xaxis.set_major_formatter(plain_digits)
    ax.xaxis.set_minor_formatter(NullFormatter())


def plain_log(ax: Axes, values: np.ndarray, label: str = "") -> bool:
    """A logarithmic y axis where values are positive and span much; numbers in plain digits either way.

    Of returns and accuracies what matters is how near the largest they are: never one for those.
    """
    small_is_good = not label.endswith(("return", "accuracy"))
    wide = bool(small_is_good and values.size and 0 < 8 * values.min() < values.max())
    if wide:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(plain_digits)
    return wide


def legend(ax: Axes, columns: int = 4) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2, "ncols": columns}
        ax.legend(handles, labels, **place, handlelength=1.4, columnspacing=1.2, handletextpad=0.5)


def _svg(name: str, title: str, paint: Callable[[Axes], None]) -> str:
    return figure_svg(name, title, lambda figure: paint(figure.subplots()), SIZE)


def figure_svg(name: str, title: str, paint: Callable[[Figure], None], size: tuple[float, float]) -> str:
    """The figure as an SVG element for HTML: same input, same bytes; fonts and colours are the page's."""
    with matplotlib.style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.05))
        paint(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", svg, flags=re.DOTALL
    )
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", svg, count=5)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ((?:\w+ )?)([\d.]+)px [^;\"]*", _font, svg)
    svg = re.sub(r"font-family: [^;\"]*; | transform=\"rotate\(-0 [^)]*\)\"", "", svg)
    svg = re.sub(r"\d+\.\d{4,}(?=[^<>]*>)", lambda match: f"{float(match[0]):.3f}", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for key, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{key})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1).strip()


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}px" + (f"; font-weight: {match[1].strip()}" if match[1] else "")
