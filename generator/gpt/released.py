"""Released files of the published system: what is in them, what they do not say, the generator they make."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ckpt_factory import ParamSpec, Symmetry, registry
from ckpt_factory.header import Imported
from ckpt_factory.nets import MLP, ConvNet
from ckpt_factory.zoo import Zoo, sha256

from ..artefact import Origin, WeightGenerator
from ..coordinates import Coordinates
from ..model.dit import DiTConfig
from ..sampling.linear_schedule import NUM_STEPS
from ..sampling.samplers import SamplerName, Sampling
from ..training.scales import published_scaling
from .config import PRESETS, GptConfig
from .denoiser import GptDenoiser
from .model import Gpt

ReleaseName = Literal["mnist_loss", "mnist_error", "cifar10_loss", "cifar10_error", "cartpole"]
Weights = Literal["ema", "raw"]
KEYS: dict[Weights, str] = {"ema": "G_ema", "raw": "G"}
SAMPLER: SamplerName = "published"
LISTED = 3
"""Names that a message gives of each kind of difference."""
BROKEN = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError),
    *(KeyError, IndexError, TypeError, AttributeError),
)
"""What torch.load raises for bytes that are no checkpoint: of these the unpickler obeys some first."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a released file needs to be used, and does not say."""

    task: str
    """The learning problem here that judges such networks."""
    prompted: str
    objective: str
    coefficient: float
    """That networks were multiplied by."""
    metric_range: tuple[float, float]
    """From the best published prompt to a network that knows nothing."""
    num_training_runs: int
    num_held_out_runs: int
    """The last of its set, by name, that its authors did not train on."""
    per_unit: float = 1.0
    """Its metric over ours: errors were percents."""


RELEASES: dict[ReleaseName, Release] = {
    "mnist_loss": Release(
        task="mnist-mlp-v0",
        prompted="validation_loss",
        objective="min",
        coefficient=4.185,
        metric_range=(0.0, log(10)),
        num_training_runs=10_228,
        num_held_out_runs=500,
    ),
    "mnist_error": Release(
        task="mnist-mlp-v0",
        prompted="validation_error",
        objective="min",
        coefficient=4.185,
        metric_range=(0.05, 0.9),
        num_training_runs=10_228,
        num_held_out_runs=500,
        per_unit=100.0,
    ),
    "cifar10_loss": Release(
        task="cifar-cnn-v0",
        prompted="validation_loss",
        objective="min",
        coefficient=1.646,
        metric_range=(1.2, log(10)),
        num_training_runs=54_790,
        num_held_out_runs=2_050,
    ),
    "cifar10_error": Release(
        task="cifar-cnn-v0",
        prompted="validation_error",
        objective="min",
        coefficient=1.646,
        metric_range=(0.35, 0.9),
        num_training_runs=54_790,
        num_held_out_runs=2_050,
        per_unit=100.0,
    ),
    "cartpole": Release(
        task="isaacgym-cartpole",
        prompted="validation_return",
        objective="max",
        coefficient=2.06,
        metric_range=(0.0, 500.0),
        num_training_runs=47_976,
        num_held_out_runs=2_050,
    ),
}
"""Of every released file; the policy of isaacgym-cartpole, 4-32-32-1 behind its log_std, has no task here."""


def read_released(path: Path) -> dict[str, Any]:
    """The content of a released file: {"G": state dict, "G_ema": state dict, ...}, mapped, not read.

    Raises:
        ValueError: no such file, not a torch checkpoint, or one with more than tensors and plain values.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}; expected a released checkpoint, like mnist_loss.pt")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols, to whom it may concern at torch
            # weights_only: a pickle may run any code
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except BROKEN as error:
        raise ValueError(
            f"{path} is no released file: it {_fault(error)}. Only tensors and plain values are read, and "
            "nothing in a file is executed; expected the file as released, a torch checkpoint of a dict "
            f"with {_keys()}, each a state_dict: fetch it again, or save these alone with torch.save"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict with {_keys()}")
    return content


def state_of(path: Path, content: Mapping[str, Any], weights: Weights) -> dict[str, Tensor]:
    """The state dict in a released file; a file that is a state dict itself is its own raw one.

    Raises:
        ValueError: it is not there; the message says what is.
    """
    state = content.get(KEYS[weights])
    if state is None and content and all(isinstance(value, Tensor) for value in content.values()):
        if weights != "raw":
            raise ValueError(f"{path} is one state dict, not said to be averaged; take it with --weights raw")
        state = content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} has no {KEYS[weights]!r} of tensors: it holds "
            f"{', '.join(map(repr, list(content)[:LISTED])) or 'nothing'}; expected {_keys()}"
        )
    return dict(state)


def differences(state: Mapping[str, Tensor], config: GptConfig) -> str:
    """How names and shapes differ from those of a model; empty if they do not."""
    expected, found = _shapes_of(config), {name: tuple(value.shape) for name, value in state.items()}
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} {found[name]} instead of {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("other shapes", shapes))
    told = [
        f"{len(names)} {kind} ({', '.join(names[:LISTED])}{', ...' * (len(names) > LISTED)})"
        for kind, names in kinds
        if names
    ]
    return "; ".join(told)


def fitting(state: Mapping[str, Tensor]) -> list[ReleaseName]:
    """The releases that a state dict has the names and shapes of."""
    return [name for name in RELEASES if not differences(state, PRESETS[name])]


def generator_of_released(path: Path, name: ReleaseName, weights: Weights = "ema") -> WeightGenerator:
    """The generator that a released file makes, to be sampled as published.

    Raises:
        ValueError: as `read_released`, `state_of`, or names, shapes or numbers that are not of that release.
    """
    state, config = state_of(path, read_released(path), weights), PRESETS[name]
    if told := differences(state, config):
        others = fitting(state)
        hint = f"it fits {' and '.join(others)}" if others else "it fits no released model"
        raise ValueError(
            f"{path} holds {len(state)} tensors, not the {len(_shapes_of(config))} of {name}; {hint}: {told}"
        )
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {', '.join(broken[:LISTED])} holds NaN or infinity; fetch the file again")
    release = RELEASES[name]
    spec, axes = network_of(name)
    coordinates = Coordinates(spec, Symmetry(spec, axes), {})
    origin = Origin(
        task=release.task,
        prompted=release.prompted,
        objective=release.objective,
        zoo_sha256=sha256(path),
        num_training_runs=release.num_training_runs,
        released=name,
    )
    scaling = published_scaling(release.coefficient, coordinates.Z, release.metric_range)
    view = replace(scaling.views[0], moments=(0.0, 1 / release.per_unit, 0.0, 1.0))
    scaling = replace(scaling, views=(view,))
    # what is cut at 2048 is cut nowhere: every tensor of cartpole's is one token, as published
    size = {each: getattr(config, each) for each in ("chunk", "width", "depth", "heads", "mlp_ratio")}
    assert coordinates.order.device.type == "cpu", "made here, and kept, rather than below"
    with torch.device("meta"):  # no memory is touched twice
        model = GptDenoiser(coordinates, DiTConfig(tokens="gpt", **size))
    model.gpt.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    sampling = Sampling(steps=NUM_STEPS, sampler=SAMPLER)
    model = model.eval().requires_grad_(False)
    return WeightGenerator(origin, coordinates, scaling, model, sampling=sampling)


def origin_on(zoo: Zoo, name: ReleaseName, held_out: float | None = None) -> Origin:
    """The origin of a released model that is to be judged on a zoo, its runs not held out being "training".

    Args:
        held_out: share of the runs; default 0.1, or of an imported zoo with as many runs as the model's own
            set those that its authors held out.

    Raises:
        ValueError: a zoo of another task or without the model's metric, or one too small.
    """
    release, header = RELEASES[name], zoo.header
    if release.task not in registry:
        raise ValueError(f"no task here can judge {name} ({release.task}); leave --zoo out")
    if header.task != release.task:
        raise ValueError(
            f"zoo {zoo.path} holds networks of task {header.task!r}, {name} makes those of {release.task!r}; "
            "give a zoo of that task"
        )
    if release.prompted not in header.metrics:
        raise ValueError(
            f"{name} is prompted with {release.prompted}, zoo {zoo.path} has {', '.join(header.metrics)}; "
            "give a zoo with that metric"
        )
    num_training = header.num_training_runs(0.1 if held_out is None else held_out)
    published = (release.num_training_runs + release.num_held_out_runs, True)
    if held_out is None and (header.num_runs, isinstance(header.plan, Imported)) == published:
        num_training = release.num_training_runs
    if num_training < 1:
        raise ValueError(
            f"zoo {zoo.path} has {header.num_runs} runs, too few to hold any out; give a larger one"
        )
    judged = Origin.of_zoo(zoo, num_training)
    return replace(judged, prompted=release.prompted, objective=release.objective, released=name)


def network_of(name: ReleaseName) -> tuple[ParamSpec, dict[str, tuple[str | None, ...]]]:
    """Names and shapes of the networks that a release makes, and the permutations of their units."""
    if name == "cartpole":
        axes: dict[str, tuple[str | None, ...]] = {
            "log_std": (None,),
            "actor.0.weight": ("P0", None),
            "actor.0.bias": ("P0",),
            "actor.2.weight": ("P1", "P0"),
            "actor.2.bias": ("P1",),
            "actor.4.weight": (None, "P1"),
            "actor.4.bias": (None,),
        }
        return ParamSpec(tuple(axes), ((1,), (32, 4), (32,), (32, 32), (32,), (1, 32), (1,))), axes
    net = MLP((784, 10, 10)) if name.startswith("mnist") else ConvNet()
    return ParamSpec.of_module(net), net.axes_to_perm()


def _shapes_of(config: GptConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Gpt(config).state_dict().items()}


def _fault(error: Exception) -> str:
    """What is wrong with a file, from how torch.load refused it; not its advice to load it in another way."""
    if found := re.search(r"GLOBAL ([\w.]+)", f"{error}"):
        return f"holds more than tensors ({found[1]})"
    if isinstance(error, pickle.UnpicklingError):
        return "holds something other than tensors and plain values, or is no checkpoint at all"
    return "cannot be read, being empty, cut short or of another kind"


def _keys() -> str:
    return " and ".join(repr(key) for key in KEYS.values())
