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
from ckpt_factory.files import write_tensors, write_text
from ckpt_factory.zoo import HEADER, sha256

from .channels import Prompts, Values, by_name, conditions, name_of, prompt_some
from .conditioning import Calibration, MetricView, Scaling
from .coordinates import Coordinates
from .model.dit import Denoiser, DiTConfig
from .model.layouts import Layout, arrange, canonical_index, layout_of
from .model.width import transfer
from .origin import Origin
from .sampling.analytic import Moments
from .sampling.samplers import (
    SAMPLERS,
    Covariance,
    Denoise,
    SamplerName,
    Sampling,
    SamplingChange,
    Trajectory,
)
from .sampling.trajectory import optimal_trajectory
from .training.pairs import Pairs

FORMAT_VERSION = 1
MODEL, NORMALIZATION, CONFIG = "model.safetensors", "normalization.safetensors", "config.json"
REFERENCE, CALIBRATION, MOMENTS = "reference", "calibration", "moments/"
SCALES = ("start_mean", "start_scale", "update_scale")
AT_ONCE = 256
"""Networks that are sampled at once: enough for full speed, and memory does not grow with their number."""


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
        """A generator before training; if it predicts clean updates, networks come back as they are.

        Args:
            reference: any network in coordinates, kept where the layout of the config needs one.
        """
        layout = layout_of(config)

        def make(config: DiTConfig) -> Denoiser:
            model = layout.make(coordinates, config)
            if len(scaling.views) > 1:
                model.condition_on(scaling.num_features)
            return model

        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch.nn initialises from the global generator, and from it alone
            model = make(config)
            if config.base_width is not None:
                transfer(model, make(config.at_base()))
        return cls(origin, coordinates, scaling, model, reference if layout.sorts else None)

    @property
    def layout(self) -> Layout:
        return layout_of(self.model.config)

    @property
    def metric(self) -> str:
        """Name of the prompted metric, "loss"; of several the main one."""
        return self.metrics[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that may be prompted, the main one first."""
        return tuple(name_of(column) for column in self.origin.columns)

    @property
    def best_metric(self) -> float:
        """The best metric of all training checkpoints."""
        return self.best_of(self.metric)

    def column_of(self, metric: str) -> str:
        """The zoo's column of one of `metrics`."""
        return self.origin.columns[self.metrics.index(metric)]

    def objective_of(self, metric: str) -> str:
        return dict(self.origin.channels)[self.column_of(metric)]

    def range_of(self, metric: str) -> tuple[float, float]:
        """The least and the largest that training checkpoints have of it."""
        return self.scaling.views[self.metrics.index(metric)].range

    def best_of(self, metric: str) -> float:
        """The best that all training checkpoints have of it."""
        return self.range_of(metric)[0 if self.objective_of(metric) == "min" else 1]

    def arrange(self, pairs: Pairs, *, rng: torch.Generator) -> Pairs:
        """Training pairs in the order of units that the layout wants, the same on both networks of a pair;
        of several metrics some prompted."""
        pairs = arrange(self.layout, self.coordinates, pairs, reference=self.reference, rng=rng)
        return prompt_some(pairs, rng=rng)

    @torch.no_grad()
    def update(
        self,
        theta: Float[Tensor, "K D"],
        metric: Values,
        prompt: Prompts,
        *,
        rng: torch.Generator,
        steps: int | None = None,
        sampler: SamplerName | None = None,
        trajectory: Trajectory | None = None,
        guidance: float | None = None,
        at_once: int = AT_ONCE,
        noise: Float[Tensor, "K Z"] | None = None,
    ) -> Float[Tensor, "K D"]:
        """One update of each network, prompted.

        Args:
            theta: start networks, of any floating-point type; the updated ones are of the same.
            metric: the metric each of them has on the validation split; by name, {"loss": ..., "error": ...},
                every one that is prompted, and others do not matter.
            prompt: the metric each updated network shall have, or one for all; by name any of `metrics`,
                {"error": 0.05}. What is not prompted has no influence at all.
            rng: of the sampling noise.
            steps: sampling steps, evaluations of the model; default its own.
            sampler: "ddim", "ddpm", or another of SAMPLERS; default its own. With another sampling than its
                own, or other metrics than the main one alone, prompts are what it is asked for, without
                calibration.
            trajectory: "even" or "optimal"; default its own.
            guidance: how far prompts are followed beyond what the model says; default its own.
            at_once: networks sampled at once, to bound memory. The noise is drawn for them in turns.
            noise: what sampling begins with, standard normal; default drawn from rng.

        Raises:
            ValueError: an unknown sampler, one that needs moments that it has not, guidance that it was not
                trained for, networks, metrics and prompts that do not fit together or are no finite numbers,
                prompts of no metric or an unknown one, or none at once.
        """
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}; expected at least 1")
        asked = SamplingChange(steps=steps, sampler=sampler, trajectory=trajectory, guidance=guidance)
        sampled = self.with_sampling(asked)
        sampling, calibration = sampled.sampling, sampled.calibration
        times, more = self._plan(sampling)
        told = conditions(self.metrics, metric, prompt)
        starts, prompts = (each.to(theta.device, torch.float32) for each in told)  # (K, M)
        if theta.shape != (len(starts), self.coordinates.spec.D) or starts.ndim != 2:
            raise ValueError(
                f"theta is {tuple(theta.shape)} and metric {tuple(starts.shape[:-1])}; expected "
                f"(K, {self.coordinates.spec.D}) and (K,), a single network as theta.unsqueeze(0)"
            )
        stretch, main_alone = 1.0, list(by_name(prompt, self.metric)) == [self.metric]
        if calibration is not None and main_alone:
            prompts[:, 0], stretch = calibration.ask(prompts[:, 0]), calibration.stretch
        sample = partial(SAMPLERS[sampling.sampler].sample, timesteps=times.to(theta.device), rng=rng, **more)
        thetas, metrics, wishes = (each.split(at_once) for each in (theta, starts, prompts))
        noises = [None] * len(thetas) if noise is None else noise.split(at_once)
        parts = zip(thetas, metrics, wishes, noises, strict=True)
        made = torch.cat([self._sampled(*part, sample, rng, sampling.guidance) for part in parts])
        return (made if stretch == 1 else torch.lerp(theta.to(made), made, stretch)).to(theta)

    def denoiser(
        self,
        z: Float[Tensor, "B Z"],
        metric: Float[Tensor, "B M"],
        prompt: Float[Tensor, "B M"],
        guidance: float = 1.0,
    ) -> Denoise:
        """Of scaled updates of these networks, in the order of units that the layout wants.

        A prompt of NaN is none. With guidance it goes from the prediction without a prompt that many times as
        far as to the one with it (Ho and Salimans 2022).
        """
        start, metrics = self.scaling.start(z), self.scaling.condition(metric, prompt)
        free = self.scaling.condition(metric, torch.full_like(prompt, torch.nan))

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
        z = self.coordinates.encode(theta.float())
        index = None
        if self.layout.sorts and self.coordinates.symmetry.sizes:
            index = canonical_index(self.coordinates, z, self.reference)
            z = z.gather(1, index)
        denoise = self.denoiser(z, metric, prompt, guidance)
        noise = torch.randn(z.shape, generator=rng, device=rng.device) if noise is None else noise
        u = sample(denoise, noise.to(z))
        if index is not None:
            u = u.gather(1, index.argsort(1))  # back into the order in which the networks came
        return theta + self.coordinates.decode_update(self.scaling.unscale_update(u))

    def with_sampling(self, by: SamplingChange | Sampling) -> "WeightGenerator":
        """With another sampling as its own; without its calibration then, which is of the sampling it had.

        Raises:
            ValueError: that needs moments, and there are none, or a training that dropped prompts.
        """
        sampling = self.sampling.changed(by)
        if sampling.guidance != 1 and not self.model.config.prompt_dropout:
            raise ValueError(
                f"guidance is {sampling.guidance:g}, but the generator has learned nothing without a prompt; "
                "leave it at 1, or train with --prompt-dropout 0.1"
            )
        if sampling.needs_moments and self.moments is None:
            by_sampler = SAMPLERS[sampling.sampler].covariance
            what = f"sampler {sampling.sampler!r}" if by_sampler else f"an {sampling.trajectory} trajectory"
            raise ValueError(
                f"{what} needs to know how uncertain the generator's predictions are: measure it with "
                "`theta moments`, or take ddim, ddpm or dpm-solver++ and an even trajectory"
            )
        return self if sampling == self.sampling else replace(self, sampling=sampling, calibration=None)

    def _plan(self, sampling: Sampling) -> tuple[Float[Tensor, " T"], dict[str, Covariance]]:
        """The times of a sampling, and what its sampler has to know beside the denoiser."""
        moments, kind = self.moments, SAMPLERS[sampling.sampler].covariance
        times = self.model.times.sampling(sampling.steps)
        if moments is not None and sampling.trajectory == "optimal":
            times = optimal_trajectory(moments, sampling.steps, self.model.times)
        if moments is None or kind is None:
            return times, {}
        group = self.coordinates.group
        return times, {"covariance": lambda t: moments.covariance(kind, t.cpu())[group]}

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(what config.json says, the tensors of normalization.safetensors); `from_parts` is the way back."""
        spec, symmetry = self.coordinates.spec, self.coordinates.symmetry
        view, *more = self.scaling.views
        fields = {
            "format_version": FORMAT_VERSION,
            "origin": self.origin.to_fields(),
            "spec": json.loads(spec.to_json()),
            "axes_to_perm": {name: list(axes) for name, axes in symmetry.axes_to_perm.items()},
            "model": asdict(self.model.config),
            "metric_range": list(view.range),
            "metric_moments": list(view.moments),
            "log_metric": view.log,
            "from_best": view.from_best,
            "sampling": asdict(self.sampling),
            "stretch": self.calibration.stretch if self.calibration else 1.0,
        }
        if more:  # a generator of one metric is the very file that it was before there were several
            fields["further_metrics"] = [asdict(each) for each in more]
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
        main = {
            "range": fields["metric_range"],
            "log": fields["log_metric"],
            "moments": fields["metric_moments"],
            "from_best": fields.get("from_best", False),  # generators saved before had none
        }
        views = (MetricView.from_fields(each) for each in (main, *fields.get("further_metrics", ())))
        scaling = Scaling(**{name: tensors[name] for name in SCALES}, views=tuple(views))
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
        write_tensors(folder / MODEL, self.model.state_dict())
        write_tensors(folder / NORMALIZATION, tensors)
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
