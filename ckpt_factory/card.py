"""The card written beside a zoo: what is in it, how it was made, how to read it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .files import write_text
from .header import Imported, ZooHeader
from .plan import RunPlan
from .plots import zoo_picture
from .zoo import Zoo

PICTURE = "coverage.png"
"""The picture beside a zoo's card."""


def write_card(zoo: Zoo) -> None:
    """README.md of a zoo and the picture in it."""
    if zoo.finished_units():
        zoo_picture(zoo, zoo.path / PICTURE)
    write_text(zoo.path / "README.md", zoo_card(zoo))


def zoo_summary(zoo: Zoo) -> dict[str, Any]:
    """What a zoo holds, as plain numbers: for `theta info`, the card and the report."""
    h, units = zoo.header, zoo.finished_units()
    runs = zoo.read_runs()
    status = np.array(runs["status"].to_pylist())
    finals = {
        name: np.array(runs[f"final_{name}"])[status == "finished"] for name in h.metrics if status.size
    }
    return {
        "task": h.task,
        "parameters": h.spec.D,
        "runs": len(runs),
        "planned_runs": h.num_runs,
        "shards": len(units),
        "planned_shards": h.num_units,
        "checkpoints": len(runs) * h.plan.num_checkpoints,
        "bytes": sum(zoo.checkpoints_path(unit).stat().st_size for unit in units),
        "diverged_runs": int((status == "diverged").sum()),
        "dtype": h.dtype,
        "final": {
            name: {"median": float(np.median(v)), "min": float(v.min()), "max": float(v.max())}
            for name, v in finals.items()
            if v.size
        },
    }


def span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def recipe_facts(plan: RunPlan | Imported, runs: pa.Table | None = None) -> dict[str, str]:
    """A recipe in words, for the card, `theta info` and the report.

    Args:
        runs: the runs table, to say how many runs drew each of several choices, not only what they are.
    """
    if isinstance(plan, Imported):
        measured = "measured again by the task" if plan.measured else "as the source gives them"
        return {
            "source": f"imported from {plan.source}; `name` is what it calls a run",
            "saved": f"{plan.num_checkpoints} checkpoints a run",
            "metrics": measured,
        }

    def drawn(name: str) -> str:
        choices: Sequence[object] = getattr(plan, name)
        if runs is None or len(choices) == 1:
            return _any(choices)
        values = runs[name].to_pylist()
        return ", ".join(f"{choice} ({values.count(choice):,} runs)" for choice in choices)

    order = "every run has a batch order of its own"
    if plan.group_size > 1:
        order = f"each {plan.group_size} runs in sequence share their batch order (order_id)"
    every = f", changed every {plan.schedule_every} steps" if plan.schedule_every > 1 else ""
    facts = {
        "optimizer": f"{drawn('optimizer')}, momentum {span(*plan.momentum)}",
        "steps": f"{plan.num_steps:,} of batch {drawn('batch_size')}; {order}",
        "learning rate": f"{span(*plan.lr)} as of SGD, {plan.schedule}{every}",
        "weight decay": f"{span(*plan.weight_decay)} as of SGD",
        "initialisation": f"{drawn('init')}, scale {span(*plan.init_scale)}, seed {plan.seed}",
        "saved": f"{plan.num_checkpoints} checkpoints a run, {SPACING[plan.spacing]}",
        "precision": plan.precision,
    }
    loss = drawn("loss") + (f" with gamma {span(*plan.gamma)}" if "tailr" in plan.loss else "")
    shown = {
        "loss": (loss, plan.loss != ("cross-entropy",)),
        "label noise": (span(*plan.label_noise), any(plan.label_noise)),
        "share of the data": (span(*plan.data_fraction), plan.data_fraction != (1.0, 1.0)),
        "of the task": (", ".join(f"{k} {span(*v)}" for k, v in plan.hyper.items()), bool(plan.hyper)),
    }
    return facts | {name: text for name, (text, differs) in shown.items() if differs}


SPACING = {
    "log": "at log-spaced steps",
    "uniform": "at evenly spaced steps",
    "random": "at steps drawn for each run",
    "metric": "those that cover the run's range of the metric most evenly",
}


def conditioning(header: ZooHeader) -> str:
    """What the metrics may be used for, in a sentence."""
    if header.prompted.startswith("test_"):
        return (
            f"As published, prompts are conditioned on the test set (`{header.prompted}`): what a generator "
            "reaches on it is no held-out figure. `theta import --evaluate` measures validation metrics."
        )
    return "Validation columns are for conditioning and selection, test columns for reporting."


def _unused(header: ZooHeader) -> str:
    return f" ({', '.join(header.unused)} null: the task has no use for them)" if header.unused else ""


def _any(choices: Sequence[object]) -> str:
    return str(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(str, choices))}"


def zoo_card(zoo: Zoo) -> str:
    """README.md of a zoo."""
    if not zoo.finished_units():
        return f"# Checkpoint zoo of {zoo.header.task}\n\nNo shard is finished yet.\n"
    h, s = zoo.header, zoo_summary(zoo)
    finals = "\n".join(
        f"| {name} | {v['min']:.4f} | {v['median']:.4f} | {v['max']:.4f} |" for name, v in s["final"].items()
    )
    recipe = "\n".join(f"- {name}: {value}" for name, value in recipe_facts(h.plan, zoo.read_runs()).items())
    params = "\n".join(
        f"| {name} | {list(shape)} | {part.start} | {part.stop} |" for name, part, shape in h.spec.slices()
    )
    return f"""# Checkpoint zoo of {h.task}

{s["runs"]:,} runs, {s["checkpoints"]:,} checkpoints of {h.spec.D:,} parameters, {s["bytes"] / 1e6:,.0f} MB, \
{s["diverged_runs"]} diverged runs (kept, `status` says which). {s["shards"]} of {s["planned_shards"]} shards.

![coverage, learning curves and endings]({PICTURE})

## Recipe
{recipe}

## Metrics at the last step
| column | min | median | max |
|---|---|---|---|
{finals}

{conditioning(h)}

## Columns
`checkpoints/`: run_id, step, {", ".join(h.metrics)}, theta ({h.dtype}\
{"" if h.dtype == "float32" else ", fixed-size binary, little-endian"}). \
theta is the state_dict, flattened row-major in this order:

| parameter | shape | from | to |
|---|---|---|---|
{params}

{f"Its input is {h.inputs}." if h.inputs else ""}

`runs/`: one row per run with its settings{_unused(h)}, status and last metrics. `sums/`: \
`sha256sum -c sums/*.sha256` checks every file.

## Read it
```python
import pyarrow.dataset as ds
ds.dataset("checkpoints", partitioning="hive").to_table(columns=["run_id", "step", "{h.prompted}"])

from ckpt_factory.zoo import Zoo
rows = Zoo.open(".").read_unit(0)          # rows.theta: (runs, steps, {h.spec.D})
state_dict = Zoo.open(".").header.spec.unflatten(rows.theta[0, -1])

import duckdb  # pip install duckdb
duckdb.sql("select step, median({h.prompted}) from 'checkpoints/**/*.parquet' group by step order by step")
```
"""
