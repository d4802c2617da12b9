"""Evaluation: published formulas against their dumb versions, on runs that were never trained on."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan, Task, make, train_stack
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo, ZooHeader
from generator.artefact import WeightGenerator
from generator.evaluation.evaluate import (
    at_steps,
    held_out_runs,
    networks_of_metric,
    prompt_alignment,
    prompt_grid,
    retrieval,
    sgd_equivalent_steps,
    summarise,
    training_checkpoints,
)
from generator.sampling.samplers import SamplingChange
from tests.conftest import write_zoo

from .conftest import TRAINING_RUNS


def with_training_runs(generator: WeightGenerator, num: int) -> WeightGenerator:
    return replace(generator, origin=replace(generator.origin, num_training_runs=num))


def test_prompt_alignment_is_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    prompts, observed = rng.random((6, 20)).astype(np.float32), rng.random((6, 20)).astype(np.float32)
    expected = []
    for p, o in zip(prompts, observed, strict=True):
        residual = sum((p[k] - o[k]) ** 2 for k in range(20))
        total = sum((p[k] - p.mean()) ** 2 for k in range(20))
        expected.append(1 - residual / (total + 1e-8))
    ours = prompt_alignment(torch.from_numpy(prompts), torch.from_numpy(observed))
    # float32 sums of 20 squares
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_prompt_alignment_of_the_perfect_the_deaf_and_the_hopeless() -> None:
    prompts = torch.linspace(0, 2, 20).expand(3, 20)
    observed = torch.stack([prompts[0], torch.ones(20), 2 - prompts[0]])
    # does as told; always makes the mean; makes the opposite: residual (2 d)^2 against total d^2
    torch.testing.assert_close(prompt_alignment(prompts, observed), torch.tensor([1.0, 0.0, -3.0]))
    diverged = observed.clone()
    diverged[0, 3] = 1e4
    assert prompt_alignment(prompts, diverged)[0] < -1e6  # not clipped


def test_sgd_equivalent_steps_are_exact_on_a_hand_made_curve() -> None:
    """At steps 0, 3, 15, whose log(1 + step) are 0, 1, 2 in units of log 4."""
    curve = torch.tensor([4.0, 2.0, 1.0])
    reached = [5.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5]
    expected = [0.0, 0.0, 4**0.5 - 1, 3.0, 4**1.5 - 1, 15.0, math.inf]
    steps = torch.tensor([0, 3, 15]).expand(7, 3)
    ours = sgd_equivalent_steps(curve.expand(7, 3), steps, torch.tensor(reached), "min")
    torch.testing.assert_close(ours, torch.tensor(expected))
    ours = sgd_equivalent_steps(-curve.expand(7, 3), steps, -torch.tensor(reached), "max")
    torch.testing.assert_close(ours, torch.tensor(expected))


def test_sgd_equivalent_steps_take_the_best_so_far_of_a_noisy_curve() -> None:
    curve = torch.tensor([[4.0, 2.0, 3.0, 1.0]])
    steps = torch.tensor([[0, 1, 3, 7]])
    ours = [sgd_equivalent_steps(curve, steps, torch.tensor([r]), "min").item() for r in (3.0, 2.0, 1.5)]
    # 3 lies half way from step 0 to 1; 2 is reached at 1; 1.5 lies half way from 3 (still 2) to 7
    np.testing.assert_allclose(ours, [2**0.5 - 1, 1.0, 4 * 2**0.5 - 1], rtol=1e-5)


def test_sgd_equivalent_steps_are_read_off_each_runs_own_steps() -> None:
    """The same curve, saved at other steps: at 0, 3, 15, at 0, 7, 63 and at 0, 1, 2."""
    curve = torch.tensor([4.0, 2.0, 1.0]).expand(3, 3)
    steps = torch.tensor([[0, 3, 15], [0, 7, 63], [0, 1, 2]])
    for reached, expected in (
        (3.0, [4**0.5 - 1, 8**0.5 - 1, 2**0.5 - 1]),
        (2.0, [3.0, 7.0, 1.0]),
        (1.5, [4**1.5 - 1, 8**1.5 - 1, 6**0.5 - 1]),
        (0.5, [math.inf] * 3),
    ):
        ours = sgd_equivalent_steps(curve, steps, torch.full((3,), reached), "min")
        torch.testing.assert_close(ours, torch.tensor(expected))
        ours = sgd_equivalent_steps(-curve, steps, torch.full((3,), -reached), "max")
        torch.testing.assert_close(ours, torch.tensor(expected))


def test_curves_at_common_steps_stay_as_they_are() -> None:
    rng = torch.Generator().manual_seed(0)
    metric, steps = torch.rand(4, 3, generator=rng), torch.tensor([0, 5, 9]).expand(4, 3)
    assert torch.equal(at_steps(metric, steps), metric)


def test_curves_are_interpolated_at_the_first_runs_steps_in_log_1_plus_step() -> None:
    """On curves that are straight in log(1 + step), what is interpolated is exact."""
    steps = torch.tensor([[0, 3, 15, 63], [0, 1, 7, 63], [0, 20, 40, 63], [0, 3, 15, 63]])
    slope, height = torch.tensor([[1.0], [-2.0], [0.5], [3.0]]), torch.tensor([[0.0], [5.0], [1.0], [2.0]])
    ours = at_steps(height + slope * steps.float().log1p(), steps)
    torch.testing.assert_close(ours, height + slope * steps[0].float().log1p())


def test_interpolated_curves_go_through_their_neighbours_and_hold_their_ends() -> None:
    steps = torch.tensor([[0, 3, 15, 63], [1, 2, 7, 31]])
    ours = at_steps(torch.tensor([[9.0, 8.0, 7.0, 6.0], [4.0, 3.0, 1.0, 2.0]]), steps)
    assert ours[0].tolist() == [9.0, 8.0, 7.0, 6.0]
    # 0 lies before the second run's steps; 3 between 2 and 7; 15 half way from 7 to 31; 63 after its last
    between = 3.0 - 2.0 * math.log(4 / 3) / math.log(8 / 3)
    assert ours[1].tolist() == pytest.approx([4.0, between, 1.5, 2.0])


def test_retrieval_picks_the_nearest_checkpoint() -> None:
    rng = torch.Generator().manual_seed(0)
    validation, test = torch.rand(50, generator=rng), torch.rand(50, generator=rng)
    prompts = 1.4 * torch.rand(4, 20, generator=rng) - 0.2  # beyond both ends, too
    ours = retrieval(prompts, validation, {"test_loss": test, "validation_loss": validation})
    for n in range(4):
        for k in range(20):
            nearest = int((validation - prompts[n, k]).abs().argmin())
            assert ours["test_loss"][n, k] == test[nearest]
            assert ours["validation_loss"][n, k] == validation[nearest]


def test_retrieval_from_a_single_checkpoint() -> None:
    ours = retrieval(torch.tensor([[0.1, 0.9]]), torch.tensor([0.5]), {"test_loss": torch.tensor([0.7])})
    assert ours["test_loss"].tolist() == [[pytest.approx(0.7)] * 2]


@pytest.mark.parametrize("training_runs", [13, 16, 23])
def test_held_out_runs_are_never_training_runs(
    digits_zoo: Zoo, generator: WeightGenerator, training_runs: int
) -> None:
    held_out = held_out_runs(digits_zoo, with_training_runs(generator, training_runs), 100)
    assert held_out.run_ids == list(range(training_runs, 24))
    plan = digits_zoo.header.runs_plan
    assert held_out.steps.tolist() == [plan.steps(run_id) for run_id in held_out.run_ids]
    for i, run_id in enumerate(held_out.run_ids):
        rows = digits_zoo.read_unit(run_id // 8)
        assert torch.equal(held_out.theta[i], rows.theta[run_id % 8])
        assert torch.equal(held_out.metrics["test_error"][i], rows.metrics["test_error"][run_id % 8])


def test_held_out_runs_keep_their_own_steps(digits: Task, generator: WeightGenerator, tmp_path: Path) -> None:
    """Of a zoo at random steps, in two shards, the runs' steps, networks and metrics stay together."""
    plan = RunPlan(num_steps=40, num_checkpoints=5, spacing="random")
    zoo = write_zoo(tmp_path, digits, plan, num_runs=8, stack_size=4)
    held_out = held_out_runs(zoo, with_training_runs(generator, 3), 4)
    assert held_out.run_ids == [3, 4, 5, 6]
    assert held_out.steps.tolist() == [plan.steps(run_id) for run_id in held_out.run_ids]
    grids = [grid_of(generator, digits, held_out.theta[:, 0], 0)]
    result, arrays = summarise(generator, held_out, grids, training_checkpoints(zoo, 3), digits)
    assert result["sgd_total_steps"] == 40
    assert arrays["steps"].tolist() == plan.steps(3)
    expected = at_steps(held_out.metrics["test_loss"], held_out.steps)
    assert torch.equal(arrays["sgd_test_loss"], expected)
    assert not torch.equal(expected, held_out.metrics["test_loss"])
    reached = grids[0]["test_loss"][:, 0]
    each = sgd_equivalent_steps(held_out.metrics["test_loss"], held_out.steps, reached, "min")
    assert torch.equal(arrays["sgd_steps"][0], each)


def test_at_most_so_many_held_out_runs_as_asked_for(digits_zoo: Zoo, generator: WeightGenerator) -> None:
    held_out = held_out_runs(digits_zoo, with_training_runs(generator, 13), 5)
    assert held_out.run_ids == [13, 14, 15, 16, 17]  # of two shards
    assert len(held_out.theta) == len(held_out.metrics["test_loss"]) == 5


def test_a_zoo_whose_held_out_runs_are_not_made_yet(
    digits_zoo: Zoo, generator: WeightGenerator, tmp_path: Path
) -> None:
    shutil.copytree(digits_zoo.path, tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    zoo.sums_path(2).unlink()
    with pytest.raises(ValueError, match=r"no finished held-out runs \(ids from 16\)"):
        held_out_runs(zoo, with_training_runs(generator, 16), 5)


def test_diverged_runs_are_not_evaluated(generator: WeightGenerator, tmp_path: Path) -> None:
    """One has lost its parameters, another only its metrics: 1e30 is finite, its square is not."""
    task, plan = make("quadratic-v0"), RunPlan(num_steps=4, num_checkpoints=3)
    zoo = Zoo.create(tmp_path, ZooHeader.of_task(task, plan, num_runs=4, stack_size=4, dtype="float32"))
    rows = train_stack(task, plan, plan.runs(range(4)))
    for run, value in ((1, torch.inf), (2, 1e30)):
        rows.theta[run, -1] = value
        for metric in rows.metrics.values():
            metric[run, -1] = torch.inf
    zoo.write_unit(0, rows)
    assert [run["status"] for run in zoo.read_runs().to_pylist()] == [
        "finished",
        *["diverged"] * 2,
        "finished",
    ]
    assert held_out_runs(zoo, with_training_runs(generator, 0), 4).run_ids == [0, 3]


def test_training_checkpoints_are_of_training_runs_alone(digits_zoo: Zoo, generator: WeightGenerator) -> None:
    training = training_checkpoints(digits_zoo, generator.origin.num_training_runs)
    rows = [digits_zoo.read_unit(0), digits_zoo.read_unit(1)]
    for name, values in training.items():
        expected = torch.cat([rows[0].metrics[name], rows[1].metrics[name][: TRAINING_RUNS - 8]])
        assert torch.equal(values, expected.flatten())


def test_networks_of_a_metric_are_the_nearest_of_their_run(
    digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    held_out = held_out_runs(digits_zoo, generator, 3)
    wanted = torch.tensor([2.0, 1.0, 0.0])
    found = networks_of_metric(held_out, "test_loss", wanted)
    for q in range(3):
        gaps = [abs(float(m - wanted[q])) for m in held_out.metrics["test_loss"][q]]
        assert torch.equal(found[q], held_out.theta[q, gaps.index(min(gaps))])


def in_two_steps(generator: WeightGenerator) -> WeightGenerator:
    return generator.with_sampling(SamplingChange(steps=2))


def grid_of(generator: WeightGenerator, task: Task, theta: Tensor, seed: int) -> dict:
    return prompt_grid(in_two_steps(generator), task, theta, seed=seed, num_prompts=4)


def test_a_prompt_grid_measures_what_it_made(digits: Task, generator: WeightGenerator) -> None:
    theta = digits.init([seeded(9, k) for k in range(3)])
    grid = grid_of(generator, digits, theta, 0)
    assert grid["prompts"].shape == (3, 4)
    assert grid["theta"].shape == (3, 4, digits.spec.D)
    start = digits.evaluate(theta, "validation")["loss"]
    torch.testing.assert_close(grid["prompts"][:, 0], torch.full((3,), generator.best_metric))
    torch.testing.assert_close(grid["prompts"][:, -1], 0.9 * start)
    for n in range(3):
        for name, values in digits.evaluate(grid["theta"][n], "test").items():
            # another number of networks in the products: float32 rounding; of the error, an image of 360
            torch.testing.assert_close(grid[f"test_{name}"][n], values, rtol=1e-4, atol=3e-3)
    again, other = grid_of(generator, digits, theta, 0), grid_of(generator, digits, theta, 1)
    assert torch.equal(grid["theta"], again["theta"])
    assert not torch.equal(grid["theta"], other["theta"])
    lean = prompt_grid(in_two_steps(generator), digits, theta, seed=0, num_prompts=4, networks=False)
    assert lean.keys() == grid.keys() - {"theta"}
    assert all(torch.equal(lean[name], grid[name]) for name in lean if name != "networks_per_s")


def test_the_summary_is_made_of_test_metrics_of_held_out_runs(
    digits: Task, digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    held_out = held_out_runs(digits_zoo, generator, 3)
    grids = [grid_of(generator, digits, held_out.theta[:, 0], seed) for seed in (0, 1)]
    del grids[1]["theta"]  # of further seeds it needs no networks
    training = training_checkpoints(digits_zoo, generator.origin.num_training_runs)
    result, arrays = summarise(generator, held_out, grids, training, digits)
    alignments = [[*map(float, prompt_alignment(g["prompts"], g["test_loss"]))] for g in grids]
    means = [sum(values) / 3 for values in alignments]
    # float32 means against Python's
    assert result["prompt_alignment"] == pytest.approx(sum(means) / 2, rel=1e-4)
    assert result["prompt_alignment_std_over_seeds"] == pytest.approx(
        np.std(means, ddof=1), rel=1e-3, abs=1e-4
    )
    assert result["prompt_alignment_worst_network"] == pytest.approx(min(map(min, alignments)), rel=1e-4)
    errors = torch.stack([g["test_error"][:, 0] for g in grids])  # the first prompt is the best
    assert result["one_update_test_error"] == pytest.approx(float(errors.mean()), rel=1e-4)
    final = [float(digits.evaluate(t[None, -1], "test")["error"]) for t in held_out.theta]
    assert result["sgd_final_test_error"] == pytest.approx(sum(final) / 3, abs=3e-3)  # one image in 360
    assert result["sgd_total_steps"] == digits_zoo.header.plan.num_steps
    best = int((training["validation_loss"] - generator.best_metric).abs().argmin())
    assert result["retrieval_test_error"] == pytest.approx(float(training["test_error"][best]), rel=1e-4)
    assert torch.equal(arrays["prompts"][1], grids[1]["prompts"])
