"""WeightGenerator: a trained generator as one object, and as a folder that loads with one call."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import ParamSpec, Symmetry
from ckpt_factory.files import atomic_path, write_text
from ckpt_factory.zoo import HEADER, Zoo, sha256

from .analytic import Moments
from .conditioning import Calibration, Scaling
from .coordinates import Coordinates
from .dit import Denoiser, DiTConfig
from .hole import Hole
from .layouts import Layout, arrange, canonical_index, layout_of
from .pairs import Pairs
from .samplers import SAMPLERS, Covariance, Denoise, Sampling
from .trajectory import optimal_trajectory
from .width import transfer

FORMAT_VERSION = 1
MODEL, NORMALIZATION, CONFIG = "model.safetensors", "normalization.safetensors", "config.json"
REFERENCE, CALIBRATION, MOMENTS = "reference", "calibration", "moments/"
SCALES = ("start_mean", "start_scale", "update_scale")
AT_ONCE = 256
"""Networks that are sampled at once: enough for full speed, and memory does not grow with their number."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a generator comes from: enough to know what it may be asked for."""

    task: str
    prompted: str
    """The zoo's column that prompts are about, "validation_loss"."""
    objective: str
    zoo_sha256: str
    """Of the zoo's header."""
    num_training_runs: int
    """Runs with a smaller id were trained on; the others are held out."""
    inputs: str = ""
    """How a network's input is made from raw data."""
    hole: Hole | None = None
    """Training checkpoints with a metric between these two were never learned from."""

    @classmethod
    def of_zoo(cls, zoo: Zoo, num_training_runs: int, hole: Hole | None = None) -> "Origin":
        return cls(
            task=zoo.header.task,
            prompted=zoo.header.prompted,
            objective=zoo.header.objective,
            zoo_sha256=sha256(zoo.path / HEADER),
            num_training_runs=num_training_runs,
            inputs=zoo.header.inputs,
            hole=hole,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Origin":
        """From what config.json says."""
        hole = fields.get("hole")  # generators saved before say nothing of it
        return cls(**{**fields, "hole": None if hole is None else tuple(hole)})


@dataclass(frozen=True)
class WeightGenerator:
    """Denoiser, coordinates and scaling of one task's networks."""

    origin: Origin
    coordinates: Coordinates
    scaling: Scaling
    model: Denoiser
    reference: Float[Tensor, " Z"] | None = None
    """The network, in coordinates, whose order of units others are brought into; for such layouts alone."""
    sampling: Sampling = field(default_factory=Sampling)
    """How it is sampled unless told otherwise."""
    calibration: Calibration | None = None
    """What its own sampling has to be asked for, and how far it has to go, to give what is prompted; None:
    just that."""
    moments: Moments | None = None
    """How uncertain its predictions are, which some samplers need to know; None where it was not measured."""

    @classmethod
    def untrained(
        cls,
        origin: Origin,
        coordinates: Coordinates,
        scaling: Scaling,
        config: DiTConfig,
        seed: int,
        reference: Float[Tensor, " Z"] | None = None,
    ) -> "WeightGenerator":
        """A generator before training, which returns every start network as it is.

        Args:
            reference: any network in coordinates, kept where the layout of the config needs one.
        """
        layout = layout_of(config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch.nn initialises from the global generator, and from it alone
            model = layout.make(coordinates, config)
            if config.base_width is not None:
                transfer(model, layout.make(coordinates, config.at_base()))
        return cls(origin, coordinates, scaling, model, reference if layout.sorts else None)

    @property
    def layout(self) -> Layout:
        return layout_of(self.model.config)

    @property
    def metric(self) -> str:
        """Name of the prompted metric, "loss"."""
        return self.origin.prompted.removeprefix("validation_")

    @property
    def best_metric(self) -> float:
        """The best metric of all training checkpoints."""
        return self.scaling.metric_range[0 if self.origin.objective == "min" else 1]

    def arrange(self, pairs: Pairs, *, rng: torch.Generator) -> Pairs:
        """Training pairs in the order of units that the layout wants, the same on both networks of a pair."""
        return arrange(self.layout, self.coordinates, pairs, reference=self.reference, rng=rng)

    @torch.no_grad()
    def update(
        self,
        theta: Float[Tensor, "K D"],
        metric: Float[Tensor, " K"],
        prompt: Float[Tensor, " K"] | float,
        *,
        rng: torch.Generator,
        steps: int | None = None,
        sampler: str | None = None,
        trajectory: str | None = None,
        guidance: float | None = None,
        at_once: int = AT_ONCE,
        noise: Float[Tensor, "K Z"] | None = None,
    ) -> Float[Tensor, "K D"]:
        """One update of each network, prompted.

        Args:
            theta: start networks.
            metric: the metric each of them has on the validation split.
            prompt: the metric each updated network shall have, or one for all.
            rng: of the sampling noise.
            steps: sampling steps, evaluations of the model; default its own.
            sampler: "ddim", "ddpm", or another of SAMPLERS; default its own. With another sampling than its
                own, prompts are what it is asked for, without calibration.
            trajectory: "even" or "optimal"; default its own.
            guidance: how far prompts are followed beyond what the model says; default its own.
            at_once: networks sampled at once, to bound memory. The noise is drawn for them in turns.
            noise: what sampling begins with, standard normal; default drawn from rng.

        Raises:
            ValueError: an unknown sampler, one that needs moments that it has not, guidance that it was not
                trained for, or networks, metrics and prompts that do not fit together.
        """
        sampling = self.sampling.changed(steps, sampler, trajectory, guidance)
        times, more = self._plan(sampling)
        prompt = torch.as_tensor(prompt, dtype=metric.dtype, device=metric.device).expand(metric.shape)
        if theta.shape != (len(metric), self.coordinates.spec.D) or metric.ndim != 1:
            raise ValueError(
                f"theta is {tuple(theta.shape)} and metric {tuple(metric.shape)}; expected "
                f"(K, {self.coordinates.spec.D}) and (K,), a single network as theta.unsqueeze(0)"
            )
        stretch = 1.0
        if self.calibration is not None and sampling == self.sampling:
            prompt, stretch = self.calibration.ask(prompt), self.calibration.stretch
        sample = partial(SAMPLERS[sampling.sampler].sample, timesteps=times.to(theta.device), rng=rng, **more)
        thetas, metrics, prompts = (each.split(at_once) for each in (theta, metric, prompt))
        noises = [None] * len(thetas) if noise is None else noise.split(at_once)
        parts = zip(thetas, metrics, prompts, noises, strict=True)
        made = torch.cat([self._sampled(*part, sample, rng, sampling.guidance) for part in parts])
        return made if stretch == 1 else torch.lerp(theta, made, stretch)

    def denoiser(
        self,
        z: Float[Tensor, "B Z"],
        metric: Float[Tensor, " B"],
        prompt: Float[Tensor, " B"],
        guidance: float = 1.0,
    ) -> Denoise:
        """Of scaled updates of these networks, in the order of units that the layout wants.

        With guidance it goes from the prediction without a prompt that many times as far as to the one with
        it (Ho and Salimans 2022).
        """
        start, was = self.scaling.start(z), self.scaling.metric(metric)
        metrics = torch.cat([was, self.scaling.metric(prompt)], -1)
        free = torch.cat([was, torch.full_like(was, torch.nan)], -1)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            told = self.model(x, t.expand(len(x)), start, metrics)
            return (
                told if guidance == 1 else self.model(x, t.expand(len(x)), start, free).lerp(told, guidance)
            )

        return denoise

    def _sampled(
        self,
        theta: Tensor,
        metric: Tensor,
        prompt: Tensor,
        noise: Tensor | None,
        sample: Callable[[Denoise, Tensor], Tensor],
        rng: torch.Generator,
        guidance: float,
    ) -> Tensor:
        z = self.coordinates.encode(theta)
        index = None
        if self.layout.sorts and self.coordinates.symmetry.sizes:
            index = canonical_index(self.coordinates, z, self.reference)
            z = z.gather(1, index)
        denoise = self.denoiser(z, metric, prompt, guidance)
        noise = torch.randn(z.shape, generator=rng) if noise is None else noise
        u = sample(denoise, noise.to(z))
        if index is not None:
            u = u.gather(1, index.argsort(1))  # back into the order in which the networks came
        return theta + self.coordinates.decode_update(self.scaling.unscale_update(u))

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse a sampling that needs what this generator has not.

        Raises:
            ValueError: its sampler or its trajectory needs moments, and there are none; or guidance needs a
                training that dropped prompts.
        """
        if sampling.guidance != 1 and not self.model.config.prompt_dropout:
            raise ValueError(
                f"guidance is {sampling.guidance:g}, but the generator has learned nothing without a prompt; "
                "leave it at 1, or train with --prompt-dropout 0.1"
            )
        if not sampling.needs_moments or self.moments is not None:
            return
        by_sampler = SAMPLERS[sampling.sampler].covariance
        what = f"sampler {sampling.sampler!r}" if by_sampler else f"an {sampling.trajectory} trajectory"
        raise ValueError(
            f"{what} needs to know how uncertain the generator's predictions are: measure it with "
            "`theta moments`, or take ddim, ddpm or dpm-solver++ and an even trajectory"
        )

    def _plan(self, sampling: Sampling) -> tuple[Float[Tensor, " T"], dict[str, Covariance]]:
        """The times of a sampling, and what its sampler has to know beside the denoiser."""
        moments, kind = self.moments, SAMPLERS[sampling.sampler].covariance
        self.check_sampling(sampling)
        if moments is None or not sampling.needs_moments:
            return self.model.times.sampling(sampling.steps), {}
        times = self.model.times.sampling(sampling.steps)
        if sampling.trajectory == "optimal":
            times = optimal_trajectory(moments, sampling.steps, self.model.times)
        if kind is None:
            return times, {}
        group = self.coordinates.group
        return times, {"covariance": lambda t: moments.covariance(kind, t.cpu())[group]}

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(what config.json says, the tensors of normalization.safetensors); `from_parts` is the way back."""
        spec, symmetry = self.coordinates.spec, self.coordinates.symmetry
        fields = {
            "format_version": FORMAT_VERSION,
            "origin": asdict(self.origin),
            "spec": json.loads(spec.to_json()),
            "axes_to_perm": {name: list(axes) for name, axes in symmetry.axes_to_perm.items()},
            "model": asdict(self.model.config),
            "metric_range": list(self.scaling.metric_range),
            "metric_moments": list(self.scaling.metric_moments),
            "log_metric": self.scaling.log_metric,
            "from_best": self.scaling.from_best,
            "sampling": asdict(self.sampling),
            "stretch": self.calibration.stretch if self.calibration else 1.0,
        }
        scales = {name: getattr(self.scaling, name) for name in SCALES}
        if self.reference is not None:
            scales[REFERENCE] = self.reference
        if self.calibration is not None:
            scales |= {f"{CALIBRATION}/{name}": getattr(self.calibration, name) for name in ("asked", "got")}
        if self.moments is not None:
            scales |= {f"{MOMENTS}{name}": value for name, value in self.moments.tensors().items()}
        return fields, {f"coordinates/{name}": t for name, t in self.coordinates.tensors().items()} | scales

    @classmethod
    def from_parts(
        cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], *, seed: int = 0
    ) -> "WeightGenerator":
        """A generator with a new model, initialised from the seed."""
        coordinates = coordinates_of_parts(fields, tensors)
        low, high = fields["metric_range"]
        mean, std, log_mean, log_std = fields["metric_moments"]
        scaling = Scaling(
            **{name: tensors[name] for name in SCALES},
            metric_range=(low, high),
            log_metric=fields["log_metric"],
            metric_moments=(mean, std, log_mean, log_std),
            from_best=fields.get("from_best", False),  # generators saved before had none
        )
        config, reference = DiTConfig.from_fields(fields["model"]), tensors.get(REFERENCE)
        made = cls.untrained(
            Origin.from_fields(fields["origin"]), coordinates, scaling, config, seed, reference
        )
        calibration = None
        if f"{CALIBRATION}/asked" in tensors:
            asked, got = (tensors[f"{CALIBRATION}/{name}"] for name in ("asked", "got"))
            calibration = Calibration(asked, got, fields["stretch"])
        sampling = Sampling(**fields.get("sampling", {}))  # generators saved before say nothing of it
        moments = _under(MOMENTS, tensors)
        return replace(
            made,
            sampling=sampling,
            calibration=calibration,
            moments=Moments.from_tensors(moments) if moments else None,
        )

    def save(self, folder: Path, *, training: Mapping[str, Any], card: str) -> None:
        """Write the artefact: model and normalization as safetensors, config.json (last), README.md."""
        fields, tensors = self.to_parts()
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        for name, content in ((MODEL, state), (NORMALIZATION, tensors)):
            with atomic_path(folder / name) as temporary:
                safetensors.torch.save_file(content, temporary)
        write_text(folder / "README.md", card)
        sums = {name: sha256(folder / name) for name in (MODEL, NORMALIZATION)}
        fields |= {"sha256": sums, "training": dict(training)}
        fields |= {"fields_sha256": _digest(fields)}
        write_text(folder / CONFIG, json.dumps(fields, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> "WeightGenerator":
        """A generator from its folder.

        Raises:
            ValueError: no generator there, a damaged file, or another format version.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            cure = f"make one with `theta train --out {folder}`"
            if (folder / HEADER).is_file():
                cure = "that is a zoo: give the generator trained on it"
            raise ValueError(f"no generator in {folder} (it has no {CONFIG}); {cure}")
        try:
            fields = json.loads((folder / CONFIG).read_text())
            if fields["format_version"] != FORMAT_VERSION:
                raise ValueError(
                    f"format version {fields['format_version']}, this thetaforge reads {FORMAT_VERSION}"
                )
            if _digest(fields) != fields["fields_sha256"]:
                raise ValueError(f"{CONFIG} is not as it was written")
            for name in (MODEL, NORMALIZATION):
                if sha256(folder / name) != fields["sha256"][name]:
                    raise ValueError(f"the sha256 of {name} is not the one in {CONFIG}")
            generator = cls.from_parts(fields, safetensors.torch.load_file(folder / NORMALIZATION))
            generator.model.load_state_dict(safetensors.torch.load_file(folder / MODEL))
        except (
            OSError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            RuntimeError,
            safetensors.SafetensorError,
        ) as error:
            text = " ".join(f"{error}".split())[:200]
            raise ValueError(f"the generator in {folder} cannot be loaded ({text}); train it anew") from None
        return replace(generator, model=generator.model.eval().requires_grad_(False))


def coordinates_of_parts(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Coordinates:
    """The coordinates of `WeightGenerator.to_parts` alone: no model is made, which takes long."""
    spec = ParamSpec.from_json(json.dumps(fields["spec"]))
    symmetry = Symmetry(spec, {name: tuple(axes) for name, axes in fields["axes_to_perm"].items()})
    return Coordinates.from_tensors(spec, symmetry, _under("coordinates/", tensors))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _digest(fields: Mapping[str, Any]) -> str:
    """sha256 of what config.json says, but for this very field."""
    said = {name: value for name, value in fields.items() if name != "fields_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
