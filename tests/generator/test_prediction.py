"""Predictions, weightings, paths, conditions, scales, dropped prompts: each choice is what it says it is."""

import json
import math
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import CONFIG, SCALES, WeightGenerator, _digest
from generator.card import model_card
from generator.coordinates import Coordinates
from generator.evaluation.evaluate import prompt_grid
from generator.model.dit import DiTConfig
from generator.model.layouts import arrange, layout_of
from generator.model.prediction import PredictionName, clean_update, error_scale
from generator.sampling.diffusion import PathName, Times, alpha_sigma, training_times
from generator.sampling.linear_schedule import NUM_STEPS, respaced, step_of, step_times
from generator.sampling.samplers import SAMPLERS, Sampling, SamplingChange
from generator.sampling.uncertainty import measure_moments
from generator.training.pairs import Pairs
from generator.training.scales import TARGET_STD, fit_scaling

from .conftest import fitted, randomise
from .gpt.test_denoiser import reservoir
from .test_artefact import TRAINING, updated
from .test_layouts import inputs, networks, pairs_of
from .test_train import Problem, learning, trained

PREDICTIONS, PATHS = get_args(PredictionName), get_args(PathName)
BOTH = list(product(PREDICTIONS, PATHS))
SMALL = DiTConfig(width=16, depth=1, heads=2)


def predicted(prediction: str, path: str, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What the papers define, of x_0 and eps."""
    alpha, sigma = alpha_sigma(t.unsqueeze(1))
    if prediction == "v" and path == "flow":
        return eps - x0
    return {"clean": x0, "noise": eps, "v": alpha * eps - sigma * x0}[prediction]


@pytest.fixture(scope="module")
def noised() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, eps, t, x_t."""
    rng = seeded(0)
    x0, eps = torch.randn(2, 40, 7, generator=rng)
    t = torch.linspace(0.02, 0.98, 40)
    alpha, sigma = alpha_sigma(t.unsqueeze(1))
    return x0, eps, t, alpha * x0 + sigma * eps


@pytest.mark.parametrize(("prediction", "path"), BOTH)
def test_every_prediction_means_the_clean_update(
    prediction: PredictionName, path: PathName, noised: tuple
) -> None:
    x0, eps, t, x = noised
    out = predicted(prediction, path, x0, eps, t)
    # float32; noise is divided by alpha, down to .03
    torch.testing.assert_close(clean_update(prediction, path, out, x, t), x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("prediction", "path"), BOTH)
def test_the_loss_is_the_squared_error_of_what_is_predicted(
    prediction: PredictionName, path: PathName, noised: tuple
) -> None:
    x0, eps, t, x = noised
    right = predicted(prediction, path, x0, eps, t)
    wrong = right + 0.3 * torch.randn(right.shape, generator=seeded(1))
    error = clean_update(prediction, path, wrong, x, t) - x0
    scale = error_scale(prediction, path, "none", t).unsqueeze(1)
    torch.testing.assert_close((scale * error).abs(), (wrong - right).abs(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_is_the_published_weight_of_each_prediction(
    prediction: PredictionName, noised: tuple
) -> None:
    """Hang et al. 2023: of clean data min(SNR, 5), of noise min(1, 5 / SNR), of v min(SNR, 5) / (SNR + 1)."""
    t = noised[2]
    alpha, sigma = alpha_sigma(t)
    snr = (alpha / sigma) ** 2
    cut = snr.clamp_max(5)
    published = {"clean": cut, "noise": (5 / snr).clamp_max(1), "v": cut / (snr + 1)}[prediction]
    own = error_scale(prediction, "cosine", "none", t) ** 2  # of its squared error over that of clean data
    weight = error_scale(prediction, "cosine", "min-snr", t) ** 2
    torch.testing.assert_close(weight, published * own, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("prediction", "path"), BOTH)
def test_the_ends_of_the_path_are_finite(prediction: PredictionName, path: PathName) -> None:
    t = torch.tensor([0.0, 1.0])
    for weighting in ("none", "min-snr"):
        assert error_scale(prediction, path, weighting, t).isfinite().all()
    assert clean_update(prediction, path, torch.ones(2, 3), torch.ones(2, 3), t).isfinite().all()


def test_by_default_times_are_what_they_were() -> None:
    assert DiTConfig().times == Times("cosine", 4.0)
    assert torch.equal(Times().training(50, rng=seeded(0)), training_times(50, rng=seeded(0), shift=4.0))
    assert DiTConfig(tokens="gpt").times == Times("linear", 1.0)
    steps = torch.randint(NUM_STEPS, (2000,), generator=seeded(0))
    assert torch.equal(step_of(Times("linear", 1.0).training(2000, rng=seeded(0))), steps)
    assert torch.equal(Times("linear").sampling(7), respaced(7))
    assert DiTConfig(tokens="gpt", path="cosine").times == Times("cosine", 4.0)


def test_on_the_flow_path_data_and_noise_are_mixed_in_even_steps() -> None:
    alpha, sigma = alpha_sigma(Times("flow").sampling(10))
    torch.testing.assert_close(sigma / (alpha + sigma), torch.linspace(1, 0, 11), rtol=0, atol=1e-6)
    times = Times("flow", 1.0).training(20_000, rng=seeded(0))
    alpha, sigma = alpha_sigma(times)
    # uniform shares: of 20,000 the mean is known to .002, five of these
    assert abs((sigma / (alpha + sigma)).mean() - 0.5) < 0.01


@pytest.mark.parametrize("path", PATHS)
def test_a_shift_moves_training_times_towards_noise(path: PathName) -> None:
    early, late = (Times(path, shift).training(5000, rng=seeded(0)) for shift in (1.0, 4.0))
    assert (late >= early).all()
    assert late.mean() > early.mean() + 0.01
    assert (late.max() <= 1).item()
    if path == "linear":
        assert torch.isin(late, step_times().float()).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm-solver++"])
def test_samplers_are_right_along_every_path(name: str, path: PathName) -> None:
    """Of a Gaussian with its true denoiser: the samples have its mean and standard deviation."""
    mean, std = 0.7, 0.4

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(t)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    noise = torch.randn(20_000, 1, generator=seeded(0))
    made = SAMPLERS[name].sample(denoise, noise, Times(path).sampling(200), rng=seeded(1))
    # standard errors .003 and .002, five of these, and what 200 steps are off
    assert abs(made.mean() - mean) < 0.02
    assert abs(made.std() - std) < 0.02


TOKENS = ("units", "chunks", "canonical")


@pytest.mark.parametrize("network", ["mlp", "convolutions"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_a_condition_as_tokens_reaches_every_output_and_uses_every_parameter(
    network: str, tokens: str, deep: MLPClassifier
) -> None:
    coordinates = networks(network, deep)
    config = DiTConfig(tokens=tokens, width=16, depth=2, heads=2, condition="token", prompt_dropout=0.1)
    model = layout_of(config).make(coordinates, config)
    u, t, start, metrics = inputs(coordinates.Z)
    assert not model(u, t, start, metrics).any(), "untrained, it makes no update"
    assert not any("modulation" in name and p.ndim > 1 for name, p in model.named_parameters())
    randomise(model)
    metrics[0, 2:] = torch.nan
    out = model(u, t, start, metrics)
    assert out.isfinite().all()
    for changed in ((u, 0.5 * t, start, metrics), (u, t, start, metrics + 0.3)):
        assert ((model(*changed) - out).abs().amax(1) > 1e-4).all()
    out.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_units_stay_equivariant_with_a_condition_as_tokens(deep: MLPClassifier) -> None:
    coordinates = networks("mlp", deep)
    config = DiTConfig(width=16, depth=2, heads=2, condition="token")
    model = layout_of(config).make(coordinates, config)
    randomise(model)
    u, t, start, metrics = inputs(coordinates.Z)
    index = coordinates.index(coordinates.symmetry.random(3, rng=seeded(5)))
    out = model(u, t, start, metrics)
    moved = model(u.gather(1, index), t, start.gather(1, index), metrics)
    assert (out.gather(1, index) - out).abs().max() > 0.1
    # attention and messages sum over units in another order: float32 rounding of values up to 1e2
    torch.testing.assert_close(moved, out.gather(1, index), rtol=1e-4, atol=1e-3)


def test_chunks_are_left_as_they_are_where_symmetry_is_none(deep: MLPClassifier) -> None:
    coordinates, rng = networks("mlp", deep), seeded(0)
    pairs = pairs_of(coordinates)
    left, shuffled = (
        arrange(
            layout_of(DiTConfig(tokens="chunks", symmetry=s)), coordinates, pairs, reference=None, rng=rng
        )
        for s in ("none", "shuffled")
    )
    assert left is pairs
    assert not torch.equal(shuffled.start, pairs.start)


@pytest.fixture(scope="module")
def problem(tiny: Task) -> Problem:
    return Problem(tiny)


@pytest.mark.parametrize(
    "model",
    [
        {"prediction": "v"},
        {"prediction": "v", "path": "flow", "time_shift": 1.0},
        {"prediction": "noise", "path": "linear"},
        {"condition": "token"},
        {"prompt_dropout": 0.1},
    ],
    ids=str,
)
def test_it_learns_with_every_choice(problem: Problem, model: dict) -> None:
    """What the prompt says is all there is to know: the held-out error of clean updates falls to little."""
    config = learning(model=replace(SMALL, **model), steps=150, lr=1e-2)
    state, _, _ = trained(problem, config)
    learned = problem.model(config)
    learned.load_state_dict(state["ema"])
    pairs, t = problem.draw(0, 200, seeded(9)), torch.full((200,), 0.6)
    u0 = problem.scaling.update(pairs.start, pairs.target)
    alpha, sigma = alpha_sigma(t.unsqueeze(1))
    x = alpha * u0 + sigma * torch.randn(u0.shape, generator=seeded(8))
    metrics = problem.scaling.condition(pairs.start_metric, pairs.prompt)
    with torch.no_grad():
        error = learned(x, t, problem.scaling.start(pairs.start), metrics) - u0
    # .005 to .05 measured, and .64 to 1.9 before training
    assert error.square().mean() < 0.15


def test_min_snr_changes_what_is_learned(problem: Problem) -> None:
    config = learning(steps=30)
    plain, weighted = (
        trained(problem, replace(config, weighting=each))[0]["ema"] for each in ("none", "min-snr")
    )
    assert any(not torch.equal(plain[name], weighted[name]) for name in plain)


def test_dropped_prompts_are_as_many_as_said(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    config = learning(model=replace(SMALL, prompt_dropout=0.25), steps=30)
    model = problem.model(config)
    predict = type(model).predict

    def spy(self, u_t, t, start, metrics):
        seen.append(metrics)
        return predict(self, u_t, t, start, metrics)

    monkeypatch.setattr(type(model), "predict", spy)
    trained(problem, config)
    metrics = torch.cat(seen)
    assert metrics[:, :2].isfinite().all(), "the start's own metric stays"
    missing = metrics[:, 2].isnan()
    # 1,920 examples: a share of .25 is known to .01, five of these
    assert abs(missing.float().mean() - 0.25) < 0.05
    assert metrics[~missing].isfinite().all()


def test_guidance_goes_beyond_the_prediction_with_a_prompt(digits: Task, digits_zoo: Zoo) -> None:
    made = fitted(digits, digits_zoo, replace(SMALL, prompt_dropout=0.1))
    randomise(made.model)
    theta = digits.init([seeded(5, k) for k in range(3)])
    z, metric, prompt = made.coordinates.encode(theta), torch.full((3, 1), 2.3), torch.full((3, 1), 0.3)
    x, t = torch.randn(z.shape, generator=seeded(0)), torch.tensor(0.7)
    free = made.denoiser(z, metric, torch.full((3, 1), torch.nan))(x, t)
    told, none, twice = (made.denoiser(z, metric, prompt, g)(x, t) for g in (1.0, 0.0, 2.0))
    assert (told - free).abs().max() > 0.01
    torch.testing.assert_close(none, free)
    torch.testing.assert_close(twice, free + 2 * (told - free), rtol=1e-4, atol=1e-4)
    assert not torch.equal(updated(made, digits, guidance=2.0), updated(made, digits))
    ways = (made.with_sampling(SamplingChange(steps=2, guidance=g)) for g in (None, 2.0))
    plain, guided = (prompt_grid(way, digits, theta, seed=0, num_prompts=2) for way in ways)
    assert torch.equal(guided["prompts"], plain["prompts"])
    assert not torch.equal(guided["theta"], plain["theta"])
    own = replace(made, sampling=Sampling(guidance=2.0))
    assert torch.equal(updated(own, digits), updated(made, digits, guidance=2.0))


def test_guidance_needs_a_training_that_dropped_prompts(generator: WeightGenerator, digits: Task) -> None:
    with pytest.raises(ValueError, match=r"guidance is 1.5, but .* train with --prompt-dropout 0.1"):
        updated(generator, digits, guidance=1.5)
    for kind in (Sampling, SamplingChange):
        with pytest.raises(ValueError, match="guidance is nan; expected a finite number"):
            kind(guidance=math.nan)


CHOICES = DiTConfig(
    width=16,
    depth=1,
    heads=2,
    condition="token",
    prediction="v",
    path="flow",
    time_shift=2.0,
    prompt_dropout=0.1,
)


def test_choices_are_saved_and_loaded(digits: Task, digits_zoo: Zoo, tmp_path: Path) -> None:
    made = replace(fitted(digits, digits_zoo, CHOICES), sampling=Sampling(steps=3, guidance=1.5))
    randomise(made.model)
    made.save(tmp_path, training=TRAINING, card=model_card(made, TRAINING))
    loaded = WeightGenerator.load(tmp_path)
    assert loaded.model.config == CHOICES
    assert loaded.sampling == made.sampling
    assert torch.equal(updated(loaded, digits), updated(made, digits))
    assert "v prediction, flow path, condition by token" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("tokens", ["units", "gpt"])
def test_generators_saved_before_there_were_choices_load(
    tokens: str, digits: Task, digits_zoo: Zoo, tmp_path: Path
) -> None:
    made = fitted(digits, digits_zoo, replace(SMALL, tokens=tokens))
    randomise(made.model)
    made.save(tmp_path, training=TRAINING, card="")
    fields = json.loads((tmp_path / CONFIG).read_text())
    assert fields["model"]["path"] == ("linear" if tokens == "gpt" else "cosine"), "defaults are said"
    for name in ("symmetry", "condition", "prediction", "path", "time_shift", "prompt_dropout"):
        del fields["model"][name]
    del fields["sampling"]["guidance"]
    (tmp_path / CONFIG).write_text(json.dumps(fields | {"fields_sha256": _digest(fields)}))
    loaded = WeightGenerator.load(tmp_path)
    assert loaded.model.config == made.model.config
    assert torch.equal(updated(loaded, digits), updated(made, digits))


@pytest.mark.parametrize("path", PATHS)
def test_moments_and_trajectories_are_on_the_path(path: PathName, digits: Task, digits_zoo: Zoo) -> None:
    made = fitted(digits, digits_zoo, replace(SMALL, path=path, prediction="noise"))
    randomise(made.model)
    moments = measure_moments(made, digits_zoo, num_pairs=8, seed=0, num_times=6)
    assert torch.equal(moments.times, Times(path).sampling(6)[:-1].flip(0).float())
    known = replace(made, moments=moments)
    times, _ = known._plan(Sampling(steps=5, trajectory="optimal"))
    assert torch.isin(times, Times(path).sampling(256).to(times)).all()
    assert updated(known, digits, steps=5, sampler="extended-ddpm", trajectory="optimal").isfinite().all()


def test_scales_are_chosen_apart_from_tokens(tiny: Task) -> None:
    coordinates, seen = Coordinates.fit(tiny, rank=0), torch.tensor([[0.3], [2.0], [1.0]])
    runs = reservoir(coordinates.Z, 0.2)
    units, gpt = SMALL, replace(SMALL, tokens="gpt")
    scaling = {
        (config.tokens, scales): fit_scaling(config, scales, coordinates, runs, seen, ("min",), rng=seeded(0))
        for config, scales in product((units, gpt), ("tensor", "single", None))
    }
    for tokens, own in (("units", "tensor"), ("gpt", "single")):
        single, tensor = scaling[tokens, "single"], scaling[tokens, "tensor"]
        (scale,) = single.start_scale.unique().tolist()
        # 118 checkpoints of 43 numbers: their standard deviation is known to 1 %; five of these
        assert abs(scale * TARGET_STD / 0.2 - 1) < 0.05
        assert torch.equal(single.update_scale, single.start_scale)
        assert not single.start_mean.any()
        assert len(tensor.update_scale.unique()) > 1
        assert tensor.start_mean.any()
        raw = tokens == "gpt"
        for each in (single, tensor):
            (view,) = each.views
            assert torch.equal(view.features(seen[:, 0])[:, 0], seen[:, 0]) == raw
            assert view.log == (not raw)
        default, same = scaling[tokens, None], scaling[tokens, own]
        assert default.views == same.views
        for name in SCALES:
            assert torch.equal(getattr(default, name), getattr(same, name))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"symmetry": "none"}, "symmetry is 'none' with tokens 'units', which know of it"),
        ({"tokens": "canonical", "symmetry": "none"}, "expected it only with chunks or gpt"),
        ({"tokens": "gpt", "condition": "adaln"}, "condition is 'adaln' with tokens 'gpt'"),
        ({"tokens": "gpt", "prompt_dropout": 0.1}, "prompt_dropout is 0.1 with tokens 'gpt'; expected"),
        ({"prompt_dropout": 1.0}, "prompt_dropout is 1.0"),
        ({"time_shift": 0.0}, "time_shift is 0.0; expected a positive, finite number"),
    ],
)
def test_impossible_choices_say_what_is_expected(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTConfig(**fields)


def test_defaults_are_left_open_until_they_are_stored() -> None:
    assert not any(asdict(DiTConfig())[name] for name in ("condition", "path", "time_shift"))
    assert DiTConfig().resolved() == DiTConfig(condition="adaln", path="cosine", time_shift=4.0)


def test_pairs_without_prompts_are_still_pairs(problem: Problem) -> None:
    pairs = problem.draw(0, 4, seeded(0))
    missing = Pairs(*pairs[:3], torch.full((4, 1), torch.nan))
    features = problem.scaling.condition(missing.start_metric, missing.prompt)
    assert features[:, :2].isfinite().all()
    assert features[:, 2].isnan().all()
