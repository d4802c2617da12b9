"""The audit catches what copies, recombines or blurs training networks, and lets fresh SGD networks pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ckpt_factory import RunPlan, Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.train import Rows
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.audit.audit import (
    AuditSettings,
    Subject,
    audit_networks,
    relative_distances,
    subject_of_grid,
    yardsticks,
)
from generator.audit.baselines import BASELINES
from generator.audit.prompts import hearing
from generator.evaluation.evaluate import held_out_runs, prompt_grid
from generator.rebasin import align
from generator.sampling.samplers import SamplingChange
from tests.conftest import write_zoo

NUM_TRAINING, NUM = 16, 8
FEW = AuditSettings(baseline_networks=8, pool_runs=8)


@pytest.fixture(scope="module")
def zoo(digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """32 runs of 150 steps in two shards, the first 16 of them training runs."""
    plan = RunPlan(num_steps=150, batch_size=(32,), num_checkpoints=12)
    return write_zoo(tmp_path_factory.mktemp("audit") / "zoo", digits, plan, num_runs=32, stack_size=16)


@pytest.fixture(scope="module")
def held_out(zoo: Zoo) -> Rows:
    """Eight of the runs that nobody trained on; the other eight stand for a perfect generator."""
    rows = zoo.read_unit(1)
    metrics = {name: values[:NUM] for name, values in rows.metrics.items()}
    return Rows(rows.run_ids[:NUM], rows.steps[:NUM], rows.theta[:NUM], metrics)


def subject_of(task: Task, theta: Tensor) -> Subject:
    metric = task.evaluate(theta, "validation")["loss"]
    return Subject(theta, metric, NUM_TRAINING, len(theta))


def fresh(zoo: Zoo) -> Tensor:
    return zoo.read_unit(1).theta[NUM:, -1]


def trained(zoo: Zoo) -> Tensor:
    return zoo.read_unit(0).theta[:NUM, -1]


def audited(
    task: Task, zoo: Zoo, held_out: Rows, theta: Tensor, **settings: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return audit_networks(subject_of(task, theta), held_out, zoo, task, replace(FEW, **settings))


def test_fresh_sgd_networks_pass(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    result, arrays = audited(digits, zoo, held_out, fresh(zoo))
    assert result["outcome"] == "generates", result["verdict"]
    assert result["passes"]
    assert result["copy_rate"] == 0
    # Runs of one kind are as far from the training runs as others of this kind: within a few per cent.
    assert result["distance_ratio"] == pytest.approx(1, abs=0.1)
    assert result["off_span"] == pytest.approx(result["off_span_held_out"], rel=0.1)
    assert len(arrays["noise/settings"]) == len(BASELINES["noise"].settings)
    written = safetensors.torch.save({name: array.contiguous() for name, array in arrays.items()})
    assert written, "a file refuses arrays that share memory"


def test_permuted_training_checkpoints_are_copies(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    theta = trained(zoo)
    moved = digits.symmetry.apply(theta, digits.symmetry.random(NUM, rng=seeded(1)))
    result, _ = audited(digits, zoo, held_out, moved)
    assert (result["outcome"], result["passes"]) == ("copies", False)
    assert result["copy_rate"] == result["near_rate"] == 1
    assert result["relative_distance"] < 1e-2
    assert result["overlap_nearest"] == 1
    assert result["same_mistakes_rate"] == 1
    assert result["verdict"].startswith("Copies: 100%")


def test_copies_of_checkpoints_between_those_looked_at_first_are_found(
    digits: Task, zoo: Zoo, held_out: Rows
) -> None:
    """Every checkpoint of two runs, of which a search looks at nine of twelve before it knows where."""
    theta = zoo.read_unit(0).theta[[3, 11]].flatten(0, 1)
    result, arrays = audited(digits, zoo, held_out, theta)
    assert result["outcome"] == "copies"
    assert len(arrays["distance_generated"]) == 24
    assert (arrays["distance_generated"] < 1e-2).all()
    # the initialisation and the first step are hardly apart, but of one run
    assert result["copy_rate"] == 1


def test_checkpoints_that_were_never_learned_from_cannot_be_copied(
    digits: Task, zoo: Zoo, held_out: Rows
) -> None:
    """Asked for metrics in its hole, a generator makes new networks, however near the zoo's are to them."""
    theta = trained(zoo)
    subject = subject_of(digits, theta)
    assert audit_networks(subject, held_out, zoo, digits, FEW)[0]["copy_rate"] == 1
    low, high = float(subject.metric.min()), float(zoo.read_unit(0).metrics["validation_loss"].max())
    hole = low - 1e-4, (low + 4 * high) / 5  # the end of all training
    result, _ = audit_networks(replace(subject, hole=hole), held_out, zoo, digits, FEW)
    assert result["copy_rate"] < 1
    assert result["distance_generated"] > 0.5


def test_a_few_copies_among_fresh_networks_are_enough(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    theta = torch.cat([fresh(zoo)[:6], trained(zoo)[:2]])
    result, _ = audited(digits, zoo, held_out, theta)
    assert result["outcome"] == "copies"
    assert result["copy_rate"] == 0.25


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_copies_are_found_however_their_units_are_scaled(
    digits: Task, zoo: Zoo, held_out: Rows, sigma: float
) -> None:
    """ReLU units may be scaled; with noise on top not even the mistakes are the same."""
    rows = zoo.read_unit(0)
    best = rows.theta[torch.arange(16), rows.metrics["validation_loss"].argmin(1)][::2]
    params = digits.spec.unflatten(best + sigma * best.std() * torch.randn(best.shape, generator=seeded(5)))
    factor = torch.exp(4 * torch.rand(NUM, 16, generator=seeded(6)) - 2)
    params["fc1.weight"] = params["fc1.weight"] * factor[:, :, None]
    params["fc1.bias"] = params["fc1.bias"] * factor
    params["fc2.weight"] = params["fc2.weight"] / factor[:, None, :]
    result, _ = audited(digits, zoo, held_out, digits.spec.flatten(params), pool_runs=16)
    assert result["copy_rate"] == 1
    assert result["distance_ratio"] > 1
    assert (result["same_mistakes_rate"] == 1) == (sigma == 0)
    assert (result["outcome"], result["passes"]) == ("copies", False)


def test_noisy_copies_are_found_however_their_logits_are_shifted(
    digits: Task, zoo: Zoo, held_out: Rows
) -> None:
    """Softmax does not see what all classes have in common; distances of weights do."""
    rows, rng = zoo.read_unit(0), seeded(7)
    best = rows.theta[torch.arange(16), rows.metrics["validation_loss"].argmin(1)][::2]
    params = {}
    for name, value in digits.spec.unflatten(best).items():
        std = value.flatten(1).std(1).view(-1, *[1] * (value.ndim - 1))
        params[name] = value + 0.08 * std * torch.randn(value.shape, generator=rng)
    for name in ("fc2.weight", "fc2.bias"):
        params[name] = params[name] + torch.randn(params[name][:, :1].shape, generator=rng)
    result, _ = audited(digits, zoo, held_out, digits.spec.flatten(params), pool_runs=16)
    assert (result["copy_rate"], result["copy_rate_held_out"]) == (1, 0)
    assert result["distance_ratio"] > 0.4
    assert result["same_mistakes_rate"] < 1
    assert (result["outcome"], result["passes"]) == ("copies", False)


def test_noise_on_training_networks_does_not_pass(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    theta = trained(zoo)
    for sigma in (0.1, 0.5):
        noisy = theta + sigma * theta.std() * torch.randn(theta.shape, generator=seeded(2))
        result, _ = audited(digits, zoo, held_out, noisy)
        assert not result["passes"], result["verdict"]


def test_means_of_training_networks_lie_in_their_span(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    theta = trained(zoo)
    middle = (theta + align(digits.spec, digits.symmetry, theta, theta.roll(1, 0))) / 2
    result, _ = audited(digits, zoo, held_out, middle, pool_runs=16)
    assert (result["outcome"], result["passes"]) == ("recombines", False)
    assert result["copy_rate"] == 0
    assert result["off_span"] < 1e-3 < result["off_span_held_out"]


def test_interpolations_of_networks_outside_the_pool_are_found(
    digits: Task, zoo: Zoo, held_out: Rows
) -> None:
    """The pool are the runs of even numbers; parents are the last checkpoints of odd ones."""
    theta = zoo.read_unit(0).theta[1::2, -1]
    between = torch.lerp(theta, align(digits.spec, digits.symmetry, theta, theta.roll(1, 0)), 0.4)
    result, _ = audited(digits, zoo, held_out, between)
    assert (result["outcome"], result["passes"]) == ("recombines", False)
    assert result["off_span"] < 1e-5 < result["off_span_held_out"]


def test_networks_without_numbers_are_counted_and_left_out(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    theta = fresh(zoo).clone()
    theta[:5] = torch.nan
    result, _ = audited(digits, zoo, held_out, theta)
    assert (result["outcome"], result["networks"], result["broken"]) == ("broken", 3, 0.625)
    nothing, arrays = audited(digits, zoo, held_out, theta[:5])
    assert (nothing["outcome"], nothing["passes"], nothing["networks"]) == ("broken", False, 0)
    assert "100% of the networks have no finite" in nothing["verdict"]
    drawn = replace(subject_of(digits, theta[:5]), num_given=60)
    assert "Audited 5 of 60 networks." in audit_networks(drawn, held_out, zoo, digits, FEW)[0]["verdict"]
    assert not arrays
    many = fresh(zoo).repeat(4, 1) * torch.linspace(0.9, 1.1, 32)[:, None]
    one_of_many = torch.cat([many, theta[:1]])
    result, _ = audited(digits, zoo, held_out, one_of_many)
    assert result["outcome"] != "broken"
    assert "3.0% of the networks have no finite parameters or metrics." in result["verdict"]


def test_one_network_many_times_is_no_evidence(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    theta = fresh(zoo)
    again = torch.cat([theta, theta[:1].half().float()])
    result, arrays = audited(digits, zoo, held_out, again)
    assert (result["outcome"], result["networks"], len(arrays["made/quality"])) == ("repeats itself", 8, 8)
    assert result["repeated"] == pytest.approx(1 / 9)
    assert "too few" not in result["verdict"]
    result, _ = audited(digits, zoo, held_out, theta[:1])
    assert "That is of 1 network, too few for intervals to be trusted." in result["verdict"]


def test_one_network_in_many_forms_is_one(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    """In other orders and scales of hidden units, and with noise that changes nothing."""
    theta = fresh(zoo)
    ordered = digits.symmetry.apply(theta[:4], digits.symmetry.random(4, rng=seeded(0)))
    params = digits.spec.unflatten(theta[4:6])
    factor = torch.rand(2, 16, generator=seeded(1)) + 0.5
    params["fc1.weight"] = params["fc1.weight"] * factor[:, :, None]
    params["fc1.bias"] = params["fc1.bias"] * factor
    params["fc2.weight"] = params["fc2.weight"] / factor[:, None]
    scaled = digits.spec.flatten(params)
    noisy = theta[6:] + 0.003 * theta.std() * torch.randn(theta[6:].shape, generator=seeded(2))
    result, _ = audited(digits, zoo, held_out, torch.cat([theta, ordered, scaled, noisy]))
    assert (result["outcome"], result["networks"], result["repeated"]) == ("repeats itself", 8, 0.5)


def test_networks_for_other_prompts_may_be_those_for_the_best(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    theta = fresh(zoo).repeat(2, 1)
    subject = replace(subject_of(digits, theta), num_best=NUM)
    result, _ = audit_networks(subject, held_out, zoo, digits, FEW)
    assert (result["networks"], result["repeated"]) == (2 * NUM, 0)


def test_copies_of_networks_that_the_zoo_has_twice_are_found(
    digits: Task, zoo: Zoo, tmp_path: Path, held_out: Rows
) -> None:
    """Their nearest run is as near as the next one."""
    rows = zoo.read_unit(0)
    once = torch.arange(NUM) % 4
    metrics = {name: values[:NUM][once].repeat(2, 1) for name, values in rows.metrics.items()}
    theta = rows.theta[:NUM][once].repeat(2, 1, 1)
    header = replace(zoo.header, num_runs=NUM_TRAINING)
    twice = Zoo.create(tmp_path / "twice", header)
    twice.write_unit(0, Rows(rows.run_ids, rows.steps, theta, metrics))
    result, _ = audited(digits, twice, held_out, rows.theta[:4, -1])
    assert (result["outcome"], result["copy_rate"]) == ("copies", 1.0)


def test_the_same_seed_gives_the_same_numbers(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    (first, _), (again, _), (other, _) = (
        audited(digits, zoo, held_out, fresh(zoo), seed=seed, baseline_networks=2, pool_runs=3)
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first["margins"] != other["margins"]


def test_yardsticks_are_held_out_checkpoints_of_equal_metric(held_out: Rows) -> None:
    metric = torch.tensor([0.5, 2.0, 1.0, 0.1] * 3)  # more networks than runs: they come round again
    found = yardsticks(held_out, "validation_loss", metric)
    for q, value in enumerate(metric):
        curve = held_out.metrics["validation_loss"][q % NUM]
        best = min(range(len(curve)), key=lambda j: abs(float(curve[j] - value)))
        assert torch.equal(found[q], held_out.theta[q % NUM, best])


def test_relative_distances_know_no_difference_between_metrics() -> None:
    """Distances that grow with the metric, of both sides alike: all are as far as their yardsticks."""
    metric = torch.linspace(0, 1, 40)
    ours, theirs = relative_distances(0.5 * (1 + metric), 1 + metric, metric)
    # the level is a median over neighbours in metric, of which the outermost have them on one side alone
    torch.testing.assert_close(ours, torch.full((40,), 0.5), rtol=0.1, atol=0)
    torch.testing.assert_close(theirs, torch.ones(40), rtol=0.1, atol=0)


def test_a_yardstick_is_held_against_others_and_not_against_itself() -> None:
    level = torch.tensor([1.0, 3.0])
    ours, theirs = relative_distances(torch.tensor([2.0, 2.0]), level, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ours, 2 / level)
    torch.testing.assert_close(theirs, level / level.flip(0))


def test_the_subject_of_a_grid_is_asked_for_the_best_and_for_other_prompts(
    digits: Task, digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    start = held_out_runs(digits_zoo, generator, 5).theta[:, 0]
    one_step = generator.with_sampling(SamplingChange(steps=1))
    grid = prompt_grid(one_step, digits, start, seed=0, num_prompts=3)
    subject = subject_of_grid(generator, grid, start, most=4, seed=0)
    assert subject.num_best == 4
    assert torch.equal(subject.theta[:4], grid["theta"][:4, 0])
    assert torch.equal(subject.theta[4:], grid["theta"][range(4), [1, 2, 1, 2]])
    assert subject.start is not None
    assert torch.equal(subject.start, torch.cat([start[:4], start[:4]]))
    assert subject.hole is None
    holed = replace(generator, origin=replace(generator.origin, hole=(0.5, 0.9)))
    assert subject_of_grid(holed, grid, start, most=4, seed=0).sound().hole == (0.5, 0.9)
    obedient = grid | {"test_loss": grid["prompts"]}
    numbers = subject_of_grid(generator, obedient, start, most=4, seed=0).numbers
    assert numbers["prompt_alignment"] == pytest.approx(1)
    assert numbers["shuffled_prompt_alignment"] < 0
    assert numbers["prompt_gain"] == pytest.approx(2 * 3 / 2)


def test_a_generator_that_does_not_listen_does_not_pass(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    """Networks as good as can be, always the same: SGD's, whatever they are asked for."""
    theta = fresh(zoo)
    prompts = torch.linspace(0.2, 2, 4).repeat(NUM, 1)
    subject = subject_of(digits, theta)
    for observed, outcome in (
        (subject.metric.unsqueeze(1).expand(-1, 4), "deaf to prompts"),
        (prompts, "generates"),
    ):
        heard = replace(subject, numbers=hearing(prompts, observed, seed=0))
        result, _ = audit_networks(heard, held_out, zoo, digits, FEW)
        assert (result["outcome"], result["passes"]) == (outcome, outcome == "generates")


def test_the_verdict_says_where_nobody_looked(digits: Task, zoo: Zoo, held_out: Rows) -> None:
    for num, words in ((4, "Searched 4 of 16 training runs."), (0, "Generates"), (16, "Generates")):
        result, _ = audited(digits, zoo, held_out, fresh(zoo), search_runs=num)
        assert words in result["verdict"]
        assert ("Searched" in result["verdict"]) == (num == 4)
