"""Writing the HTML report of a zoo, its generator and their evaluation."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ckpt_factory.files import check_writable, write_text
from ckpt_factory.zoo import Zoo, sha256
from generator.artefact import MODEL, WeightGenerator
from generator.medians import median
from generator.report.report import render_report

from .belongs import check_belongs
from .command import Command
from .evaluate import ARRAYS
from .progress import say
from .result import RESULT
from .training_log import LOG, read_log

FILM = "policies.gif"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to report on."""

    zoo: Path = Path("runs/zoo")
    """The zoo."""
    generator: Path = Path("runs/generator")
    """The generator trained on it."""
    evaluation: Path = Path("runs/evaluation")
    """What `theta evaluate` wrote."""
    watch: Path | None = None
    """What `theta watch` wrote, a GIF of policies, to be shown in the report."""
    out: Path = Path("runs/report")
    """Folder for report.html."""


def report(config: ReportConfig) -> dict[str, Any]:
    """Write report.html, one file without links; returns its path and the headline number."""
    zoo, generator = Zoo.open(config.zoo), WeightGenerator.load(config.generator)
    check_belongs(generator, zoo)
    _check_there(config.evaluation, (RESULT, ARRAYS), "evaluation", "evaluate")
    try:
        result = json.loads((config.evaluation / RESULT).read_text(encoding="utf-8"))
        if not isinstance(result, dict) or "prompt_alignment" not in result:
            raise ValueError(f"its {RESULT} is not one of theta evaluate")
        if result.get("arrays") != sha256(config.evaluation / ARRAYS):
            raise ValueError(f"{ARRAYS} is not of this {RESULT}")
        arrays = safetensors.torch.load_file(config.evaluation / ARRAYS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"no evaluation in {config.evaluation} ({error}); run `theta evaluate --out "
            f"{config.evaluation}` first"
        ) from None
    evaluated = {"zoo": generator.origin.zoo_sha256, "model": sha256(config.generator / MODEL)}
    if result.get("evaluated") != evaluated:
        raise ValueError(
            f"{config.evaluation} is an evaluation of another generator than {config.generator}; run "
            f"`theta evaluate --generator {config.generator} --out {config.evaluation}` again"
        )
    film = read_film(config) if config.watch else None
    check_writable(config.out)
    path = config.out / "report.html"
    result |= _never_reached(result, arrays)
    write_text(path, render_report(zoo, generator, result, arrays, read_log(config.generator / LOG), film))
    say(f"report: {path.absolute()}")
    return {"report": str(path), "prompt_alignment": result["prompt_alignment"]}


def _check_there(folder: Path, files: Sequence[str], what: str, verb: str) -> None:
    """Whether a folder holds what another command writes.

    Raises:
        ValueError: a file is missing.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        has = f"it has no {' and no '.join(missing)}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"no {what} in {folder} ({has}); run `theta {verb} --out {folder}` first")


def _never_reached(result: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> dict[str, float]:
    """The equivalent steps that result.json has as null, since most runs never got there: infinite."""
    steps = arrays.get("sgd_steps")
    if steps is None or not median(steps.flatten()).isinf():
        return {}
    return {name: math.inf for name in ("sgd_equivalent_steps", "sgd_equivalent_env_steps") if name in result}


def read_film(config: ReportConfig) -> bytes:
    """The GIF that `theta watch` wrote of the networks of this very generator.

    Raises:
        ValueError: there is none, or of another generator.
    """
    assert config.watch is not None
    _check_there(config.watch, (RESULT, FILM), "film", "watch")
    try:
        watched = json.loads((config.watch / RESULT).read_text(encoding="utf-8"))
        gif = (config.watch / FILM).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no film in {config.watch} ({error}); run `theta watch --out {config.watch}` first"
        ) from None
    if watched.get("evaluated", {}).get("model") != sha256(config.generator / MODEL):
        raise ValueError(
            f"{config.watch} is a film of another generator than {config.generator}; run "
            f"`theta watch --generator {config.generator} --out {config.watch}` again"
        )
    return gif


COMMAND = Command(
    ReportConfig,
    lambda config: (report(config), config.out, 0),
    starts_ray=False,
    examples="theta report\ntheta report --zoo my-zoo --generator my-generator --evaluation my-evaluation\n"
    "theta report --watch runs/watch",
)
