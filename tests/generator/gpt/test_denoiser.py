"""The published transformer behind the interface of updates: the published numbers in other units."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from generator.artefact import Origin, WeightGenerator
from generator.coordinates import Coordinates
from generator.gpt.denoiser import GptDenoiser
from generator.model.dit import DiTConfig
from generator.model.layouts import LAYOUTS
from generator.sampling.diffusion import add_noise
from generator.sampling.linear_schedule import alpha_bar, step_times
from generator.sampling.samplers import sample_published
from generator.training.pairs import Pairs, Reservoir, Runs
from generator.training.scales import TARGET_STD, fit_scaling, published_scaling
from generator.training.train import TrainConfig, train

from ..conftest import randomise

CONFIG = DiTConfig(tokens="gpt", chunk=8, width=16, depth=2, heads=2)


def denoiser(task: Task, *, random: bool = True) -> tuple[Coordinates, GptDenoiser]:
    coordinates = Coordinates.fit(task, rank=0)
    model = LAYOUTS["gpt"].make(coordinates, CONFIG)
    assert isinstance(model, GptDenoiser)
    if random:
        randomise(model)
    return coordinates, model


def networks(num: int, size: int) -> tuple[Tensor, Tensor]:
    rng = seeded(0)
    start = torch.randn(num, size, generator=rng)
    return start, start + 0.3 * torch.randn(num, size, generator=rng)


def test_the_update_is_what_gpt_says_of_the_noised_network(deep: MLPClassifier) -> None:
    """theta (state_dict order) noised as published, the timestep an integer, metrics raw."""
    coordinates, model = denoiser(deep)
    coefficient, step, num = 4.185, 700, 3
    start, target = networks(num, deep.spec.D)
    was, wanted = torch.tensor([2.3, 1.0, 0.5]), torch.tensor([0.1, 0.5, 0.4])
    eps = torch.randn(start.shape, generator=seeded(1))
    kept = float(alpha_bar()[step])
    noised = kept**0.5 * coefficient * target + (1 - kept) ** 0.5 * eps
    expected = model.gpt(noised, torch.full((num,), float(step)), coefficient * start, was, wanted)

    scaling = published_scaling(coefficient, coordinates.Z, (0.1, 2.3))
    z, z1 = coordinates.encode(start), coordinates.encode(target)
    t = step_times()[step].float().expand(num)
    u = kept**0.5 * scaling.update(z, z1) + (1 - kept) ** 0.5 * coordinates.encode(eps)
    metrics = scaling.condition(was.unsqueeze(1), wanted.unsqueeze(1))
    update = scaling.unscale_update(model(u, t, scaling.start(z), metrics))
    ours = coefficient * (start + coordinates.decode_update(update))
    # float32 through two blocks, values up to 60
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


def test_sampling_updates_is_sampling_networks(deep: MLPClassifier) -> None:
    """The published chain over networks, and ours over updates from the same noise, draw the same network."""
    coordinates, model = denoiser(deep)
    start = networks(2, coordinates.Z)[0]
    metrics = torch.tensor([[2.3, 0.0, 0.5, 0.0]]).expand(2, 4)
    times = model.times.sampling(20)

    def update(u: Tensor, t: Tensor) -> Tensor:
        return model(u, t.expand(len(u)), start, metrics)

    noise = torch.randn(start.shape, generator=seeded(1))
    u = sample_published(update, noise, times, rng=seeded(2))

    kept = [*(torch.cos(torch.pi / 2 * times) ** 2).tolist()]
    x, rng = noise + kept[0] ** 0.5 * start, seeded(2)
    for (t, s), (abar, before) in zip(pairwise(times), pairwise(kept), strict=True):
        x0 = start + update(x - abar**0.5 * start, t.float())
        beta = 1 - abar / before
        x = before**0.5 * beta / (1 - abar) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - abar) * x
        if s > 0:
            x = x + beta**0.5 * torch.randn(x.shape, generator=rng)
    # float32 along 20 steps of a model that amplifies: values up to 30
    torch.testing.assert_close(start + u, x, rtol=1e-3, atol=1e-2)


def test_it_is_trained_at_the_steps_of_the_schedule_and_sampled_along_them(tiny: Task) -> None:
    _, model = denoiser(tiny)
    known = step_times().float()
    assert torch.isin(model.times.training(500, rng=seeded(0)), known).all()
    assert torch.isin(model.times.sampling(30)[:-1].float(), known).all()


def test_an_untrained_denoiser_returns_no_update(tiny: Task) -> None:
    coordinates, model = denoiser(tiny, random=False)
    start, noised = networks(3, coordinates.Z)
    assert not model(noised, torch.rand(3), start, torch.rand(3, 4)).any()


def reservoir(size: int, std: float) -> Reservoir:
    made, rng = Reservoir(20), seeded(0)
    z = 5 + std * torch.randn(20, 6, size, generator=rng)
    z[3, 2:] = torch.nan
    made.push(Runs(z, torch.rand(20, 6, 1, generator=rng)))
    return made


def test_the_published_scale_is_one_number_for_all_parameters(tiny: Task) -> None:
    coordinates = Coordinates.fit(tiny, rank=0)
    seen = torch.tensor([[0.3], [2.0], [1.0]])
    runs = reservoir(coordinates.Z, 0.2)
    scaling = fit_scaling(CONFIG, None, coordinates, runs, seen, ("min",), rng=seeded(0))
    (scale,) = scaling.start_scale.unique().tolist()
    # 118 checkpoints of 43 numbers: their standard deviation is known to 1 %; five of these
    assert abs(scale * TARGET_STD / 0.2 - 1) < 0.05
    assert torch.equal(scaling.update_scale, scaling.start_scale)
    assert not scaling.start_mean.any()
    assert scaling.metric_range == (pytest.approx(0.3), 2.0)
    raw = torch.cat([seen, torch.zeros(3, 1)], 1)
    assert torch.equal(scaling.condition(seen, seen), torch.cat([raw, raw], 1)), "metrics are raw"


def generator_of(task: Task) -> WeightGenerator:
    coordinates = Coordinates.fit(task, rank=0)
    origin = Origin(
        task=task.id, prompted="validation_loss", objective="min", zoo_sha256="", num_training_runs=3
    )
    scaling = published_scaling(2.0, coordinates.Z, (0.1, 1.2))
    return WeightGenerator.untrained(origin, coordinates, scaling, CONFIG, seed=0)


def test_an_untrained_generator_returns_the_start_networks(deep: MLPClassifier) -> None:
    made, theta = generator_of(deep), deep.init([seeded(0, k) for k in range(3)])
    metric = torch.full((3,), 1.1)
    assert torch.equal(made.update(theta, metric, 0.5, rng=seeded(1), steps=4, sampler="ddpm"), theta)


def test_it_learns_what_prompts_say_as_others_do(tiny: Task) -> None:
    """Networks that move along one direction as far as the difference of metrics says."""
    made = generator_of(tiny)
    direction = torch.randn(made.coordinates.Z, generator=seeded(4))

    def draw(step: int, num: int, rng: torch.Generator) -> Pairs:
        start = 0.3 * torch.randn(num, made.coordinates.Z, generator=rng)
        prompt = torch.rand(num, generator=rng)
        target = start + (prompt - 1).unsqueeze(1) * direction
        return Pairs(start, torch.ones(num, 1), target, prompt.unsqueeze(1))

    losses = []
    config = TrainConfig(
        model=CONFIG, steps=120, batch_size=64, lr=3e-3, warmup_steps=10, precision="float32"
    )
    train(made.model, draw, made.scaling, config, report=lambda metrics, _: losses.append(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]


def test_noise_is_added_as_published_at_its_times() -> None:
    """What training adds at a step's time has the published mixture, to float32."""
    x0, step = torch.randn(4, 9, generator=seeded(0)), 300
    t = step_times()[step].float().expand(4)
    eps = torch.randn(x0.shape, generator=seeded(1))
    kept = float(alpha_bar()[step])
    torch.testing.assert_close(
        add_noise(x0, t, rng=seeded(1)), kept**0.5 * x0 + (1 - kept) ** 0.5 * eps, rtol=1e-5, atol=1e-5
    )
