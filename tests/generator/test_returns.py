"""Metrics to be maximised, from prompts to the report: a classifier judged by a return of which some are
negative, with two hidden layers and environment steps."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan
from ckpt_factory.header import Imported
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import Origin, WeightGenerator
from generator.conditioning import Scaling
from generator.coordinates import Coordinates
from generator.evaluation.evaluate import (
    held_out_runs,
    in_env_steps,
    measured_again,
    prompt_grid,
    retrieval,
    summarise,
    training_checkpoints,
)
from generator.evaluation.starts import STARTS, recursive_curves
from generator.medians import median
from generator.model.dit import DiTConfig
from generator.prompt import Prompted, check_made
from generator.report import plots
from generator.report.report import render_report
from generator.sampling.samplers import SamplingChange
from generator.training.pairs import Pairs, Reservoir, Runs
from generator.training.reading import metrics_of
from tests.conftest import write_zoo

from .conftest import Returns, randomise
from .test_report import CURVE, section, text_of

PLAN = RunPlan(num_steps=24, batch_size=(32,), num_checkpoints=6)
NUM_TRAINING = 6


@pytest.fixture(scope="module")
def zoo(returns: Returns, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("returns") / "zoo", returns, PLAN, num_runs=12, stack_size=12)


@pytest.fixture(scope="module")
def policies(returns: Returns, zoo: Zoo) -> WeightGenerator:
    """A generator of units for two hidden layers, with random weights."""
    coordinates, reservoir = Coordinates.fit(returns, rank=8), Reservoir(NUM_TRAINING)
    rows = zoo.read_unit(0)
    z = coordinates.encode(rows.theta[:NUM_TRAINING].flatten(0, 1)).unflatten(0, (NUM_TRAINING, -1))
    metric = metrics_of(rows, ("validation_return",))[:NUM_TRAINING]
    reservoir.push(Runs(z, metric))
    pairs = reservoir.sample(300, rng=seeded(0))
    scaling = Scaling.fit(coordinates, pairs, metric.flatten(0, 1), ("max",))
    size = DiTConfig(width=16, depth=1, heads=2)
    made = WeightGenerator.untrained(Origin.of_zoo(zoo, NUM_TRAINING), coordinates, scaling, size, seed=0)
    randomise(made.model)
    return made


@pytest.fixture(scope="module")
def evaluated(
    returns: Returns, zoo: Zoo, policies: WeightGenerator
) -> tuple[dict[str, Any], dict[str, Tensor], list[dict[str, Any]]]:
    held_out, one_step = held_out_runs(zoo, policies, 4), policies.with_sampling(SamplingChange(steps=1))
    grids = [
        prompt_grid(one_step, returns, held_out.theta[:, 0], seed=seed, num_prompts=5) for seed in range(2)
    ]
    result, arrays = summarise(policies, held_out, grids, training_checkpoints(zoo, NUM_TRAINING), returns)
    return result, arrays, grids


def test_the_zoo_has_negative_returns_and_the_best_is_the_highest(
    zoo: Zoo, policies: WeightGenerator
) -> None:
    values = training_checkpoints(zoo, NUM_TRAINING)["validation_return"]
    assert values.min() < 0 < values.max()
    assert policies.best_metric == values.max()
    assert (policies.metric, policies.origin.objective) == ("return", "max")


def test_prompts_rise_from_the_starts_own_return_to_the_best(
    returns: Returns, policies: WeightGenerator, evaluated: Any
) -> None:
    """As published for returns: linear, with a share of 1."""
    prompts = evaluated[2][0]["prompts"]
    theta = evaluated[1]["start_theta"]
    assert (prompts.diff(dim=1) < 0).all()
    assert (prompts[:, 0] == policies.best_metric).all()
    # float32 of another product
    torch.testing.assert_close(
        prompts[:, -1], returns.evaluate(theta, "validation")["return"], atol=1e-2, rtol=0
    )
    even = prompts.diff(dim=1)
    torch.testing.assert_close(even, even[:, :1].expand_as(even))  # linear


def test_metric_features_of_returns(policies: WeightGenerator) -> None:
    """No logarithm of what may be negative: the second view tells the best ones apart, and the first all."""
    (view,) = policies.scaling.views
    low, high = view.range
    assert view.from_best
    assert not view.log
    features = view.features(torch.linspace(low - 50, high, 20))
    assert features.isfinite().all()
    assert (features.diff(dim=0) > 0).all()
    near, far = (
        view.features(torch.tensor(pair)).diff(dim=0)[0] for pair in ([high - 1, high], [low, low + 1])
    )
    assert near[1] > 5 * far[1]  # a step at the best is large in it
    torch.testing.assert_close(near[0], far[0], rtol=1e-3, atol=1e-5)
    beyond = view.features(torch.tensor([high, high + 10]))
    assert beyond[1, 0] > beyond[0, 0]
    assert beyond[1, 1] == beyond[0, 1]


def test_views_are_standardised_over_what_they_are_fitted_on(
    policies: WeightGenerator, returns: Returns
) -> None:
    z = torch.randn(2, 400, policies.coordinates.Z, generator=seeded(0))
    metric = 200 * torch.rand(2, 400, 1, generator=seeded(1)) - 150
    pairs = Pairs(z[0], metric[0], z[1], metric[1])
    scaling = Scaling.fit(policies.coordinates, pairs, metric.flatten(0, 1), ("max",))
    features = scaling.views[0].features(metric.flatten())
    # float32 sums of 800
    torch.testing.assert_close(features.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(2), atol=1e-4, rtol=0)


def test_a_saved_generator_of_returns_makes_the_same_updates(
    policies: WeightGenerator, returns: Returns, tmp_path: Path
) -> None:
    policies.save(tmp_path, training={}, card="")
    theta, metric = returns.init([seeded(1), seeded(2)]), torch.tensor([-100.0, -90.0])
    made, again = (
        g.update(theta, metric, 50.0, rng=seeded(0)) for g in (policies, WeightGenerator.load(tmp_path))
    )
    assert torch.equal(made, again)


def test_starts_are_strange_below_what_the_zoo_has_seen_not_above_it(policies: WeightGenerator) -> None:
    low, high = policies.scaling.metric_range

    def warned(start: float) -> list[str]:
        prompts, metrics = {"return": torch.ones(1)}, {"validation_return": torch.tensor([start])}
        return check_made(policies, Prompted(torch.zeros(1, 1), prompts, metrics, [metrics], 1.0))

    assert warned(low) == warned(high) == warned(low - 0.4 * (high - low)) == []
    for start in (low - 0.6 * (high - low), high + 1):
        assert "outside of what the zoo has seen" in warned(start)[0]


def test_ppo_equivalents_are_optimizer_steps_and_environment_steps(
    returns: Returns, zoo: Zoo, policies: WeightGenerator, evaluated: Any
) -> None:
    held_out, (result, arrays, grids) = held_out_runs(zoo, policies, 4), evaluated
    assert held_out.batch_sizes == [32] * 4
    reached = torch.stack([grid["test_return"][:, 0] for grid in grids])
    for s in range(2):
        for n in range(4):
            as_good = (held_out.metrics["test_return"][n] >= reached[s, n]).nonzero()
            steps = float(arrays["sgd_steps"][s, n])
            last = held_out.steps[n, int(as_good[0])] if len(as_good) else math.inf
            assert steps <= last  # interpolated between that checkpoint and the one before
            if len(as_good) and as_good[0] > 0:
                assert steps > held_out.steps[n, int(as_good[0]) - 1]
    by_hand = [
        math.inf if math.isinf(each) else math.ceil(math.ceil(each) / 4) * 10 * 32
        for each in arrays["sgd_steps"].flatten().tolist()
    ]
    assert result["sgd_equivalent_env_steps"] == sum(sorted(by_hand)[3:5]) / 2
    assert result["sgd_total_env_steps"] == 6 * 10 * 32


def test_tasks_without_an_environment_have_no_environment_steps(
    digits: Any, digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    held_out = held_out_runs(digits_zoo, generator, 2)
    assert in_env_steps(digits, held_out, torch.ones(1, 2)) == {}


def test_imported_runs_have_no_environment_steps_either(
    returns: Returns, zoo: Zoo, policies: WeightGenerator
) -> None:
    """Nobody knows how large their batches were."""
    imported = Imported(source="elsewhere", num_checkpoints=zoo.header.plan.num_checkpoints)
    header = replace(zoo.header, plan=imported)
    held_out = held_out_runs(Zoo(zoo.path, header), policies, 2)
    assert held_out.batch_sizes == []
    assert in_env_steps(returns, held_out, torch.ones(1, 2)) == {}


def test_the_result_has_no_loss_and_keeps_spreads_apart(evaluated: Any) -> None:
    result, arrays, grids = evaluated
    assert not [name for name in (*result, *arrays) if "loss" in name or "error" in name]
    # the metric return_std, a standard deviation between episodes, and the spread of the return over networks
    assert result["one_update_test_return_std"] == 3.0
    means = torch.stack([grid["test_return"][:, 0] for grid in grids]).mean(0)
    assert result["one_update_test_return_std_over_networks"] == pytest.approx(float(means.std()), rel=1e-4)


def test_retrieval_looks_up_returns(zoo: Zoo) -> None:
    training = training_checkpoints(zoo, NUM_TRAINING)
    best = float(training["validation_return"].max())
    found = retrieval(torch.tensor([[best, -1e3]]), training["validation_return"], training)
    assert found["validation_return"].tolist() == [[best, float(training["validation_return"].min())]]


def test_held_out_runs_can_be_measured_again(returns: Returns, zoo: Zoo, policies: WeightGenerator) -> None:
    held_out = held_out_runs(zoo, policies, 3)
    again = measured_again(held_out, returns)
    for name, values in held_out.metrics.items():
        # another number of networks in the products: float32 rounding, and an image of 360
        torch.testing.assert_close(again.metrics[name], values, rtol=1e-3, atol=0.3)
    shifted = replace(held_out, metrics={name: values - 50 for name, values in held_out.metrics.items()})
    assert torch.equal(measured_again(shifted, returns).metrics["test_return"], again.metrics["test_return"])


@pytest.fixture(scope="module")
def page(returns: Returns, zoo: Zoo, policies: WeightGenerator, evaluated: Any) -> str:
    result, arrays, _ = evaluated
    theta = held_out_runs(zoo, policies, 4).theta[:, 0]
    one_step = policies.with_sampling(SamplingChange(steps=1))
    for kind in STARTS:
        curve = recursive_curves(one_step, returns, theta, kind, seed=0, updates=2)
        arrays = arrays | {f"ood_{kind}_{name}": values for name, values in curve.items()}
        result = result | {f"ood_{kind}": median(curve["test_return"], 0).tolist()}
    return render_report(zoo, policies, result, arrays, CURVE)


def test_the_report_speaks_of_returns(page: str) -> None:
    text = text_of(page)
    sgd = r"SGD (step|run|network)|all of SGD|SGD's|test loss|test error|validation loss"
    assert not re.search(sgd, text)
    for words in ("One update against RL", "RL steps", "environment steps", "best validation return"):
        assert words in text, words
    assert "Test deterministic return" in text
    assert "return std" not in text_of(section(page, "zoo"))


def test_the_report_says_in_words_what_rl_and_looking_up_give(
    zoo: Zoo, policies: WeightGenerator, evaluated: Any
) -> None:
    """Environment steps and the control stand beside what one update reaches."""
    result, arrays, _ = evaluated

    def texts(**numbers: float) -> tuple[str, str]:
        page = render_report(zoo, policies, result | numbers, arrays, CURVE)
        return text_of(page), text_of(section(page, "sgd"))

    numbers = {"one_update_test_return": 413.4, "retrieval_test_return": 481.0, "best_prompt": 500.0}
    steps = {"sgd_equivalent_steps": 218.0, "sgd_total_steps": 640, "sgd_total_env_steps": 40_960}
    page, words = texts(**numbers, **steps, sgd_equivalent_env_steps=14_336.0)
    assert "one update equals 218 of 640 RL steps , which take 14,336 of 40,960 environment steps" in page
    assert (
        "Prompted for 500.0, a policy made in one update returns 413 in the mean. RL takes 14,336 of" in words
    )
    assert "from the same start until its policy returns as much (median)" in words
    assert "a training policy looked up for the same prompt, returns 481 and generates nothing" in words
    page, words = texts(**numbers, **steps, sgd_equivalent_env_steps=math.inf)
    assert "RL takes more than 40,960 environment steps from the same start" in words


def test_the_report_shows_starts_unlike_the_zoos(page: str) -> None:
    recursion = section(page, "recursion")
    assert recursion.count("<svg") == 1
    for words in ("as in the zoo", "halved", "doubled", "orthogonal", "uniform", "2 updates"):
        assert words in text_of(recursion), words
    numbers = section(page, "numbers")
    assert "median metric of half starts" in numbers


def test_returns_have_linear_axes() -> None:
    """On a logarithmic one the best returns would look alike; losses that span as much have one."""
    curves = torch.linspace(15, 500, 20).expand(3, 20)
    labels = [
        re.findall(r">(\d+)</text>", plots.sgd_curves(torch.arange(20), curves, f"test {metric}"))
        for metric in ("return", "loss")
    ]
    assert "300" in labels[0]
    assert "300" not in labels[1]
