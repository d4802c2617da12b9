"""What a training was begun with: coordinates and scales, fitted once, kept beside its states until its end.

Another processor or another BLAS may fit the same data with other signs of eigenvectors, and half-trained
weights mean nothing in coordinates but their own.
"""

import json
from pathlib import Path

import safetensors

from ckpt_factory.files import write_tensors
from generator.artefact import WeightGenerator

FITTED, FIELDS = "fitted.safetensors", "fields"


def write_fitted(folder: Path, generator: WeightGenerator) -> None:
    """Keep all of a generator but its model."""
    fields, tensors = generator.to_parts()
    write_tensors(folder / FITTED, tensors, {FIELDS: json.dumps(fields)})


def read_fitted(folder: Path, *, seed: int) -> WeightGenerator | None:
    """The generator that was kept in a folder, its model initialised from the seed; None if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    path = folder / FITTED
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            return WeightGenerator.from_parts(json.loads(file.metadata()[FIELDS]), tensors, seed=seed)
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        why = " ".join(f"{error}".split())[:160]
        raise ValueError(f"{path} is damaged ({why}); remove the folder, or give another --out") from None
