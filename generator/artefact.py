"""WeightGenerator: a trained generator as one object, and as a folder that loads with one call."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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

from .conditioning import Calibration, Scaling
from .coordinates import Coordinates
from .diffusion import timesteps
from .dit import Denoiser, DiTConfig
from .layouts import LAYOUTS, Layout, arrange, canonical_index
from .pairs import Pairs
from .samplers import SAMPLERS, Sampling
from .width import transfer

FORMAT_VERSION = 1
MODEL, NORMALIZATION, CONFIG = "model.safetensors", "normalization.safetensors", "config.json"
REFERENCE, CALIBRATION = "reference", "calibration"
SCALES = ("start_mean", "start_scale", "update_scale")


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

    @classmethod
    def of_zoo(cls, zoo: Zoo, num_training_runs: int) -> "Origin":
        return cls(
            task=zoo.header.task,
            prompted=zoo.header.prompted,
            objective=zoo.header.objective,
            zoo_sha256=sha256(zoo.path / HEADER),
            num_training_runs=num_training_runs,
            inputs=zoo.header.inputs,
        )


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
    """What its own sampling has to be asked for to give what is prompted; None: just that."""

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
        layout = LAYOUTS[config.tokens]
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # torch.nn initialises from the global generator, and from it alone
            model = layout.make(coordinates, config)
            if config.base_width is not None:
                transfer(model, layout.make(coordinates, config.at_base()))
        return cls(origin, coordinates, scaling, model, reference if layout.sorts else None)

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.model.config.tokens]

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
    ) -> Float[Tensor, "K D"]:
        """One update of each network, prompted.

        Args:
            theta: start networks.
            metric: the metric each of them has on the validation split.
            prompt: the metric each updated network shall have, or one for all.
            rng: of the sampling noise.
            steps: sampling steps, evaluations of the model; default its own.
            sampler: "ddim" or "ddpm"; default its own. With another sampling than its own, prompts are what
                it is asked for, without calibration.

        Raises:
            ValueError: another sampler, or networks, metrics and prompts that do not fit together.
        """
        sampling = self.sampling.changed(steps, sampler)
        prompt = torch.as_tensor(prompt, dtype=metric.dtype, device=metric.device).expand(metric.shape)
        if theta.shape != (len(metric), self.coordinates.spec.D) or metric.ndim != 1:
            raise ValueError(
                f"theta is {tuple(theta.shape)} and metric {tuple(metric.shape)}; expected "
                f"(K, {self.coordinates.spec.D}) and (K,), a single network as theta.unsqueeze(0)"
            )
        if self.calibration is not None and sampling == self.sampling:
            prompt = self.calibration.ask(prompt)
        z = self.coordinates.encode(theta)
        index = None
        if self.layout.sorts and self.coordinates.symmetry.sizes:
            index = canonical_index(self.coordinates, z, self.reference)
            z = z.gather(1, index)
        start = self.scaling.start(z)
        metrics = torch.cat([self.scaling.metric(metric), self.scaling.metric(prompt)], -1)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return self.model(x, t.expand(len(x)), start, metrics)

        noise = torch.randn(z.shape, generator=rng).to(z)
        u = SAMPLERS[sampling.sampler](denoise, noise, timesteps(sampling.steps).to(z), rng=rng)
        if index is not None:
            u = u.gather(1, index.argsort(1))  # back into the order in which the networks came
        return theta + self.coordinates.decode_update(self.scaling.unscale_update(u))

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
        }
        scales = {name: getattr(self.scaling, name) for name in SCALES}
        if self.reference is not None:
            scales[REFERENCE] = self.reference
        if self.calibration is not None:
            scales |= {f"{CALIBRATION}/{name}": getattr(self.calibration, name) for name in ("asked", "got")}
        return fields, {f"coordinates/{name}": t for name, t in self.coordinates.tensors().items()} | scales

    @classmethod
    def from_parts(
        cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], *, seed: int = 0
    ) -> "WeightGenerator":
        """A generator with a new model, initialised from the seed."""
        spec = ParamSpec.from_json(json.dumps(fields["spec"]))
        symmetry = Symmetry(spec, {name: tuple(axes) for name, axes in fields["axes_to_perm"].items()})
        prefix = "coordinates/"
        coordinates = Coordinates.from_tensors(
            spec, symmetry, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
        low, high = fields["metric_range"]
        mean, std, log_mean, log_std = fields["metric_moments"]
        scaling = Scaling(
            **{name: tensors[name] for name in SCALES},
            metric_range=(low, high),
            log_metric=fields["log_metric"],
            metric_moments=(mean, std, log_mean, log_std),
            from_best=fields.get("from_best", False),  # generators saved before had none
        )
        config, reference = DiTConfig(**fields["model"]), tensors.get(REFERENCE)
        made = cls.untrained(Origin(**fields["origin"]), coordinates, scaling, config, seed, reference)
        calibration = None
        if f"{CALIBRATION}/asked" in tensors:
            calibration = Calibration(*(tensors[f"{CALIBRATION}/{name}"] for name in ("asked", "got")))
        sampling = Sampling(**fields.get("sampling", {}))  # generators saved before say nothing of it
        return replace(made, sampling=sampling, calibration=calibration)

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


def _digest(fields: Mapping[str, Any]) -> str:
    """sha256 of what config.json says, but for this very field."""
    said = {name: value for name, value in fields.items() if name != "fields_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
