"""Several metrics: what is not prompted does not exist for the denoiser; one metric is what it was."""

import json
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan, Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.card import model_card
from generator.channels import columns_of_names, conditions, with_objectives
from generator.conditioning import Calibration, MetricView, Scaling
from generator.coordinates import Coordinates
from generator.evaluation import several
from generator.evaluation.evaluate import (
    grid_of_prompts,
    held_out_runs,
    prompt_grid,
    training_checkpoints,
    training_starts,
)
from generator.evaluation.suite import Material, SuiteConfig, parts_of, run_part
from generator.model.dit import DiTConfig
from generator.origin import Origin
from generator.prompt import check_made, check_prompts, prompt_networks
from generator.sampling.diffusion import add_noise
from generator.sampling.samplers import SamplingChange
from generator.sampling.uncertainty import measure_moments
from generator.training.pairs import Pairs, Runs
from generator.training.reading import reservoir_of
from generator.training.train import TrainConfig, Training, train

from ..conftest import write_zoo
from .conftest import TRAINING_RUNS, Returns, randomise
from .test_artefact import TRAINING

SIZE = DiTConfig(width=16, depth=1, heads=2)
CONFIG = TrainConfig(
    model=DiTConfig(width=32, depth=1), steps=30, batch_size=32, warmup_steps=5, precision="float32"
)
BOTH = ("validation_loss", "validation_error")


def untrained(zoo: Zoo, task: Task, columns: tuple[str, ...], config: DiTConfig = SIZE) -> WeightGenerator:
    """Fitted as for a training, with these metrics."""
    coordinates = Coordinates.fit(task, rank=12)
    reservoir = reservoir_of(zoo, coordinates, 0, TRAINING_RUNS, TRAINING_RUNS, None, columns)
    training = training_checkpoints(zoo, TRAINING_RUNS)
    (_, *also) = with_objectives(columns, training, zoo.header.objective)
    origin = Origin.of_zoo(zoo, TRAINING_RUNS, also=tuple(also))
    seen = torch.stack([training[column] for column in columns], 1)
    objectives = [objective for _, objective in origin.channels]
    pairs = reservoir.sample(500, rng=seeded(0))
    scaling = Scaling.fit(coordinates, pairs, seen, objectives)
    return WeightGenerator.untrained(origin, coordinates, scaling, config, 0, reservoir.best("min"))


@pytest.fixture(scope="module")
def both(digits: Task, digits_zoo: Zoo) -> WeightGenerator:
    """A generator of loss and error with random weights: it changes networks, to no good."""
    made = untrained(digits_zoo, digits, BOTH)
    randomise(made.model)
    return made


@pytest.fixture(scope="module")
def learned(digits: Task, digits_zoo: Zoo) -> WeightGenerator:
    """Trained on loss and error for a few seconds."""
    config = replace(CONFIG, steps=400, lr=4e-3)
    made = untrained(digits_zoo, digits, BOTH, config.model)
    reservoir = reservoir_of(digits_zoo, made.coordinates, 0, TRAINING_RUNS, TRAINING_RUNS, None, BOTH)
    losses = []
    average = train(
        made.model,
        lambda step, num, rng: made.arrange(reservoir.sample(num, rng=rng), rng=rng),
        made.scaling,
        config,
        report=lambda metrics, _: losses.append(metrics["loss"]),
    )
    made.model.load_state_dict(average.state_dict())
    assert losses[-1] < 0.6 * losses[0]
    return replace(made, model=made.model.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def starts(digits: Task) -> Tensor:
    return digits.init([seeded(5, k) for k in range(6)])


# One metric is what it was.


def pairs_of_one(runs: Runs, num: int, rng: torch.Generator, levels: int = 64) -> Pairs:
    """Stratified pairs as they are drawn of one metric, (R, S) finite numbers, by themselves."""
    metric, num_steps = runs.metric[..., 0], runs.metric.shape[1]
    values = metric.flatten()
    low, high = values.min(), values.max()
    level = ((values - low) / (high - low) * levels).long().clamp_max(levels - 1)
    order = level.argsort(stable=True)
    count = torch.bincount(level, minlength=levels)
    first = (count.cumsum(0) - count)[count > 0]
    count = count[count > 0]
    drawn = torch.randint(len(count), (num,), generator=rng)
    within = (torch.rand(num, generator=rng, dtype=torch.float64) * count[drawn]).long()
    by_level = order[first[drawn] + within]
    by_order = order[torch.randint(len(order), (num,), generator=rng)]
    target = torch.where(torch.rand(num, generator=rng) < 0.5, by_level, by_order)
    run, j = target // num_steps, target % num_steps
    earlier = (torch.rand(num, generator=rng) * j).long()
    i = torch.where(torch.rand(num, generator=rng) < 0.5, torch.zeros_like(j), earlier)
    start, wanted = metric[run, i].unsqueeze(1), metric[run, j].unsqueeze(1)
    return Pairs(runs.z[run, i], start, runs.z[run, j], wanted)


def test_a_training_of_one_metric_is_the_single_path_to_the_bit(digits: Task, digits_zoo: Zoo) -> None:
    """The oracle draws its pairs and makes its features of one metric alone, and knows no channels."""
    made, oracle = (untrained(digits_zoo, digits, BOTH[:1], CONFIG.model) for _ in range(2))
    reservoir = reservoir_of(digits_zoo, made.coordinates, 0, TRAINING_RUNS, TRAINING_RUNS)
    z, metric, whole = reservoir.whole_runs()
    assert len(whole) == len(reservoir)
    runs = Runs(z[whole], metric[whole])
    average = train(
        made.model,
        lambda step, num, rng: made.arrange(reservoir.sample(num, rng=rng), rng=rng),
        made.scaling,
        CONFIG,
        report=lambda metrics, state: None,
    )
    scaling, (view,) = oracle.scaling, oracle.scaling.views
    training = Training(oracle.model, CONFIG, rank=0)
    for step in range(CONFIG.steps):
        pairs = pairs_of_one(runs, CONFIG.batch_size, training.rng)
        t = oracle.model.times.training(CONFIG.batch_size, rng=training.rng)
        u0 = scaling.update(pairs.start, pairs.target)
        noisy = add_noise(u0, t, rng=training.rng)
        features = [view.features(each[:, 0]) for each in (pairs.start_metric, pairs.prompt)]
        predicted = oracle.model(noisy, t, scaling.start(pairs.start), torch.cat(features, -1))
        training.update((predicted - u0).square().mean(), step / CONFIG.steps)
    for name, value in training.ema.state_dict().items():
        assert torch.equal(value, average.state_dict()[name]), name
    assert average.state_dict()["metrics.mlp.0.weight"].shape[1] == 4 * 15  # seven frequencies, and itself


def test_an_artefact_of_one_metric_says_nothing_of_channels(
    generator: WeightGenerator, digits: Task, starts: Tensor
) -> None:
    """So that it is the very file that it was; and what is given by name is the same as what is not."""
    fields, _ = generator.to_parts()
    assert "further_metrics" not in fields
    assert "also" not in fields["origin"]
    assert generator.metrics == ("loss",)
    metric = digits.evaluate(starts, "validation")
    made = generator.update(starts, metric["loss"], 0.5, rng=seeded(1))
    assert torch.equal(made, generator.update(starts, metric, {"loss": 0.5}, rng=seeded(1)))


# What is not prompted has no influence.


@pytest.mark.parametrize("prompted", ["loss", "error"])
def test_what_is_not_prompted_has_no_influence(
    both: WeightGenerator, digits: Task, starts: Tensor, prompted: str
) -> None:
    (other,) = {"loss", "error"} - {prompted}
    metric = digits.evaluate(starts, "validation")

    def made(**changed: Tensor) -> Tensor:
        given = {name: value for name, value in (metric | changed).items() if len(value)}
        return both.update(starts, given, {prompted: 0.3}, rng=seeded(1), steps=2)

    expected = made()
    assert torch.equal(made(**{other: metric[other] + 1}), expected)
    assert torch.equal(made(**{other: torch.full((6,), torch.nan)}), expected)
    assert torch.equal(made(**{other: torch.empty(0)}), expected), "it need not even be given"
    assert not torch.equal(made(**{prompted: metric[prompted] + 1}), expected)
    together = both.update(starts, metric, {prompted: 0.3, other: 0.4}, rng=seeded(1), steps=2)
    assert not torch.equal(together, expected)


def test_every_channel_that_is_prompted_matters(both: WeightGenerator, digits: Task, starts: Tensor) -> None:
    metric = digits.evaluate(starts, "validation")

    def made(loss: float, error: float, start: dict[str, Tensor] = metric) -> Tensor:
        return both.update(starts, start, {"loss": loss, "error": error}, rng=seeded(1), steps=1)

    expected = made(0.3, 0.1)
    halved = [made(0.3, 0.1, metric | {name: metric[name] / 2}) for name in ("loss", "error")]
    for other in (made(0.4, 0.1), made(0.3, 0.2), *halved):
        assert not torch.equal(other, expected)


def test_hidden_channels_are_zero_and_said_to_be_hidden(both: WeightGenerator) -> None:
    """A channel whose features happen to be 0 is still told from one that is hidden."""
    assert both.scaling.num_features == 10
    means = torch.tensor([[view.moments[0] for view in both.scaling.views]])
    hidden = torch.tensor([[0.5, torch.nan]])
    features = both.scaling.condition(means, hidden)
    assert not features[0, 5:].any()
    assert features[0, 4] == 1
    shown = both.scaling.condition(means, torch.tensor([[0.5, 0.2]]))
    assert shown[0, 9] == 1
    assert torch.equal(shown[0, :5], features[0, :5])
    start = torch.tensor([[2.0, 0.9]], requires_grad=True)
    both.scaling.condition(start, hidden).sum().backward()
    assert start.grad is not None
    assert start.grad[0, 0] != 0
    assert start.grad[0, 1] == 0


# Training, saving, prompting.


def test_after_a_short_training_either_metric_does_as_prompted(
    learned: WeightGenerator, digits: Task, digits_zoo: Zoo
) -> None:
    """From the few starts that it has seen."""
    theta = training_starts(digits_zoo, TRAINING_RUNS, 8)
    for name, low, high in (("loss", 0.8, 2.0), ("error", 0.2, 0.7)):
        achieved = []
        for prompt in (low, high):
            wish = {name: torch.full((8,), prompt)}
            made = prompt_networks(learned, digits, theta, wish, rng=seeded(0))
            achieved.append(float(made.achieved[-1][f"test_{name}"].mean()))
        assert achieved[1] - achieved[0] > 0.5 * (high - low), name


def test_a_saved_generator_of_several_metrics_is_the_same(
    both: WeightGenerator, digits: Task, starts: Tensor, tmp_path: Path
) -> None:
    both.save(tmp_path, training=TRAINING, card=model_card(both, TRAINING))
    loaded = WeightGenerator.load(tmp_path)
    assert loaded.origin == both.origin
    assert loaded.scaling.views == both.scaling.views
    assert loaded.metrics == ("loss", "error")
    metric = digits.evaluate(starts, "validation")
    for prompt in ({"loss": 0.3}, {"error": 0.1}, {"loss": 0.3, "error": 0.1}):
        made, again = (each.update(starts, metric, prompt, rng=seeded(1)) for each in (both, loaded))
        assert torch.equal(made, again)
    card = (tmp_path / "README.md").read_text()
    assert "| or, alone or together | validation_error, min; seen from" in card
    parts, tensors = both.to_parts()
    again = WeightGenerator.from_parts(json.loads(json.dumps(parts)), tensors)
    again.model.load_state_dict(both.model.state_dict())
    assert torch.equal(
        again.update(starts, metric, {"error": 0.1}, rng=seeded(1)),
        both.update(starts, metric, {"error": 0.1}, rng=seeded(1)),
    )


def test_widths_transfer_with_several_metrics(digits: Task, digits_zoo: Zoo) -> None:
    config = DiTConfig(width=32, depth=1, heads=4, base_width=16)
    made = untrained(digits_zoo, digits, BOTH, config)
    first = made.model.metrics.mlp[0]
    assert isinstance(first, torch.nn.Linear)
    assert first.in_features == 10 * 15
    assert made.model.lr_scales["metrics.mlp.2.weight"] == 0.5


def test_a_number_is_the_main_metric_alone_and_calibration_is_of_that(
    both: WeightGenerator, digits: Task, starts: Tensor
) -> None:
    metric = digits.evaluate(starts, "validation")
    one = both.update(starts, metric["loss"], 0.5, rng=seeded(1))
    assert torch.equal(one, both.update(starts, metric, {"loss": 0.5}, rng=seeded(1)))
    ask = Calibration(torch.tensor([0.1, 2.0]), torch.tensor([0.5, 1.5]), 1.5)
    calibrated = replace(both, calibration=ask)
    assert not torch.equal(calibrated.update(starts, metric["loss"], 0.5, rng=seeded(1)), one)
    for prompt in ({"error": 0.1}, {"loss": 0.5, "error": 0.1}):
        made, plain = (each.update(starts, metric, prompt, rng=seeded(1)) for each in (calibrated, both))
        assert torch.equal(made, plain)


@pytest.mark.parametrize(
    ("metric", "prompt", "message"),
    [
        (("loss",), {"accuracy": 0.9}, r"knows no metric 'accuracy'; expected loss or error"),
        (("loss",), {}, r"no metric is prompted; expected at least one of loss, error"),
        (("loss", "error"), {"error": torch.nan}, r"prompt of error holds NaN or infinity"),
        (("loss", "error"), {"loss": torch.inf}, r"prompt of loss holds NaN or infinity"),
        (("loss",), {"error": 0.1}, r"error of the start networks is missing; .* prompted: error"),
    ],
)
def test_impossible_prompts_say_what_is_expected(
    both: WeightGenerator, starts: Tensor, metric: tuple[str, ...], prompt: dict, message: str
) -> None:
    given = {name: torch.full((6,), 0.9) for name in metric}
    with pytest.raises(ValueError, match=message):
        both.update(starts, given, prompt, rng=seeded(0))


def test_metrics_of_different_networks_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of the tests
    other = {"loss": torch.ones(6), "error": torch.ones(5)}
    with pytest.raises(ValueError, match=r"error of the start networks is \(5,\); expected \(6,\)"):
        conditions(("loss", "error"), other, {"loss": 1.0, "error": 1.0})


def test_warnings_are_about_each_metric_that_is_prompted(
    both: WeightGenerator, digits: Task, starts: Tensor
) -> None:
    low, high = both.range_of("error")
    assert check_prompts(both, [low, high], "error") == []
    (warning,) = check_prompts(both, [high + 0.2], "error")
    assert f"prompted error {high + 0.2:g} lies outside" in warning
    made = prompt_networks(both, digits, starts, {"error": torch.full((6,), low)}, rng=seeded(0))
    strange = replace(made, start=made.start | {"validation_error": torch.full((6,), 3.0)})
    assert any(
        "6 start networks have a validation_error outside" in each for each in check_made(both, strange)
    )
    broken = replace(made, achieved=[made.achieved[-1] | {"validation_error": torch.full((6,), torch.nan)}])
    assert "6 of the networks made have no finite validation_error" in check_made(both, broken)


# Where metrics come from.


def test_returns_are_channels_as_losses_are(returns: Returns, tmp_path: Path) -> None:
    """Sampled and likeliest actions; how they were measured is no metric of a network."""
    plan = RunPlan(num_steps=24, batch_size=(32,), num_checkpoints=6)
    zoo = write_zoo(tmp_path / "zoo", returns, plan, num_runs=16, stack_size=16)
    names = ("return", "deterministic_return")
    columns = columns_of_names(names, zoo.header, returns)
    with pytest.raises(
        ValueError, match="unknown metric 'return_std', 'episodes'; the zoo has return, determ"
    ):
        columns_of_names(("return", "return_std", "episodes"), zoo.header, returns)
    made = untrained(zoo, returns, columns)
    randomise(made.model)
    assert made.metrics == names
    assert [made.objective_of(name) for name in names] == ["max", "max"]
    assert all(isinstance(view, MetricView) and view.from_best for view in made.scaling.views)
    theta = returns.init([seeded(1), seeded(2)])
    wish = {"deterministic_return": torch.full((2,), made.best_of("deterministic_return"))}
    one_step = made.with_sampling(SamplingChange(steps=1))
    found = prompt_networks(one_step, returns, theta, wish, rng=seeded(0))
    assert found.theta.isfinite().all()
    assert list(found.prompts) == ["deterministic_return"]


# Evaluation.


def test_each_metric_is_evaluated_alone_and_all_together(
    learned: WeightGenerator, digits: Task, digits_zoo: Zoo
) -> None:
    held_out = held_out_runs(digits_zoo, learned, 4)
    sizes = {"num_prompts": 5, "num_seeds": 2}
    material = Material(learned, digits_zoo, digits, held_out, learned.best_metric, **sizes)
    parts = [each for each in parts_of(SuiteConfig(beyond=0), learned) if each[0] in ("alone", "together")]
    assert sorted(parts) == [("alone", "error"), ("together", "")]
    numbers, arrays = {}, {}
    for part in parts:
        found = run_part(material, SuiteConfig(), part)
        numbers |= found[0]
        arrays |= found[1]
    prompts = arrays["channel_error_prompts"]
    assert (prompts[:, 0] == learned.best_of("error")).all()
    start = digits.evaluate(material.starts, "validation")["error"]
    torch.testing.assert_close(prompts[:, -1], 0.9 * start)
    assert numbers["channel_error_best_prompt"] == pytest.approx(learned.best_of("error"))
    again = grid_of_prompts(learned, digits, material.starts, {"error": prompts}, seed=1)
    assert torch.equal(arrays["channel_error_achieved_test"][1], again["test_error"])
    residual = (prompts - arrays["channel_error_achieved_test"]).square().sum(2)
    total = (prompts - prompts.mean(1, keepdim=True)).square().sum(1)
    expected = float((1 - residual / total).mean())
    assert numbers["channel_error_prompt_alignment"] == pytest.approx(expected, abs=1e-4)  # + 1e-8 of a sum
    assert numbers["channel_error_retrieval_prompt_alignment"] > 0.9, "looking up is the control"
    # together the prompts are pairs that training checkpoints have
    training = training_checkpoints(digits_zoo, TRAINING_RUNS)
    asked = {name: arrays[f"together_{name}_prompts"] for name in learned.metrics}
    nearest = (training["validation_loss"] - asked["loss"].unsqueeze(-1)).abs().argmin(-1)
    assert torch.equal(asked["error"], training["validation_error"][nearest])
    grids = [prompt_grid(learned, digits, material.starts, seed=seed, num_prompts=5) for seed in range(2)]
    assert torch.equal(asked["loss"], grids[0]["prompts"])
    by_chance = several.without_its_prompt(learned, grids, arrays)
    assert list(by_chance) == ["together_error_without_its_prompt"]
    assert numbers["together_loss_prompt_alignment"] < 1
    assert parts_of(SuiteConfig(beyond=0), replace(learned, origin=replace(learned.origin, also=()))) == []


def test_uncertainty_is_measured_on_what_training_sees(both: WeightGenerator, digits_zoo: Zoo) -> None:
    moments = measure_moments(both, digits_zoo, num_pairs=16, seed=0, num_times=2)
    assert moments.extended.isfinite().all()
    assert (moments.extended > 0).all()
