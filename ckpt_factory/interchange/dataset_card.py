"""README.md of a Hugging Face dataset made of a zoo: metadata for the Hub, and all that a reader needs."""

import json

from ..card import conditioning, recipe_facts, zoo_summary
from ..zoo import Zoo

PICTURE = "coverage.png"
"""The picture in the card: which metrics the checkpoints cover, and how the runs learn."""
SIZES = {
    "n<1K": 10**3,
    "1K<n<10K": 10**4,
    "10K<n<100K": 10**5,
    "100K<n<1M": 10**6,
    "1M<n<10M": 10**7,
    "10M<n<100M": 10**8,
    "100M<n<1B": 10**9,
}
"""The Hub's categories, and below how many rows each ends."""
TAGS = ("neural-network-weights", "checkpoints", "weight-space-learning", "thetaforge")


def dataset_card(zoo: Zoo, *, name: str = "", license: str = "") -> str:
    """The card. `license` is an identifier of the Hub; without one, none is claimed."""
    h, s = zoo.header, zoo_summary(zoo)
    name = name or f"Checkpoint zoo of {h.task}"
    finals = "\n".join(
        f"| {column} | {v['min']:.4f} | {v['median']:.4f} | {v['max']:.4f} |"
        for column, v in s["final"].items()
    )
    recipe = "\n".join(f"- {key}: {value}" for key, value in recipe_facts(h.plan, zoo.read_runs()).items())
    params = "\n".join(
        f"| {key} | {list(shape)} | {part.start} | {part.stop} |" for key, part, shape in h.spec.slices()
    )
    inputs = f"\nA network's input is {h.inputs}.\n" if h.inputs else ""
    columns = "\n".join(
        f"| {field.name} | {field.type} |" for field in zoo.read_unit_runs(0).schema if field.name != "run_id"
    )
    return f"""{_metadata(name, license, s["checkpoints"])}
# {name}

{s["checkpoints"]:,} checkpoints of {h.spec.D:,} parameters from {s["runs"]:,} training runs, \
{h.plan.num_checkpoints} of each; {s["diverged_runs"]} runs diverged (kept, `status` says which).

![coverage]({PICTURE})

## Load it
```python
from datasets import load_dataset

repository = "path/to/this/folder"  # or its name on the Hub
index = load_dataset(repository, "index", split="train")  # one small row per checkpoint, no parameters
weights = load_dataset(repository, "weights", split="train").with_format("torch")
theta = weights[0]["theta"]  # ({h.spec.D},), checkpoint weights[0]["step"] of run weights[0]["run_id"]
```

Row i of `index` and row i of `weights` are the same checkpoint. `streaming=True` downloads what is read.

## Columns
`weights`: run_id, step, theta as {h.spec.D} float32{_stored(h.dtype)}. theta is the state_dict,
flattened row-major in this order (for programs: names and shapes are in `zoo.json`):

| parameter | shape | from | to |
|---|---|---|---|
{params}
{inputs}
`index`: run_id, step, the metrics of the checkpoint ({", ".join(h.metrics)}), and of its run:

| column | type |
|---|---|
{columns}

{conditioning(h)}

## Recipe
{recipe}

## Metrics at the last step
| column | min | median | max |
|---|---|---|---|
{finals}
"""


def _metadata(name: str, license: str, checkpoints: int) -> str:
    """The YAML that the Hub and `datasets` read; JSON strings are YAML strings."""
    size = next((text for text, end in SIZES.items() if checkpoints < end), "n>1B")
    lines = ["---", f"pretty_name: {json.dumps(name)}"]
    lines += [f"license: {json.dumps(license)}"] if license else []
    lines += ["size_categories:", f"- {size}", "tags:", *(f"- {tag}" for tag in TAGS), "configs:"]
    for config in ("index", "weights"):
        lines += [f"- config_name: {config}"]
        lines += ["  data_files:", "  - split: train", f"    path: {config}/*.parquet"]
        lines += ["  default: true"] if config == "index" else []
    return "\n".join([*lines, "---"])


def _stored(dtype: str) -> str:
    return "" if dtype == "float32" else f", the zoo's {dtype} made wider without loss"
