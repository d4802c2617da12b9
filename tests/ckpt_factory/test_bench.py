"""Benchmarks compare equal work and compute what they say they do; nothing here depends on a speed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ckpt_factory import MLP, ParamSpec, RunPlan, Task, train_stack
from ckpt_factory.bench import clock, paired_difference, storage
from ckpt_factory.bench.contenders import FactoryStack, PlainLoop, VmapStack, check_same_networks
from ckpt_factory.bench.factory import (
    RECIPES,
    Recipe,
    Variant,
    Work,
    count_work,
    figures,
    measure_factory,
    whole_stacks,
)
from ckpt_factory.tasks import Batch, ImageData, MLPClassifier, Quadratic
from ckpt_factory.tasks.base import Sampler
from ckpt_factory.train import Rows


class Convolutions(MLPClassifier):
    """A task of images (B, 1, 8, 8) that knows nothing of precisions: all that a benchmark asks of one."""

    def __init__(self, data: ImageData):
        super().__init__(data, (64, 10))
        self.spec = ParamSpec.of_module(self.module())

    def module(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 10))

    def examples(self, split: str, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, labels = super().examples(split, index)
        return x.view(-1, 1, 8, 8), labels

    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([0.2 * torch.randn(self.spec.D, generator=rng) for rng in rngs])

    def sampler(self, *given: Any) -> Sampler:
        next_batch = super().sampler(*given)

        def reshaped(params: Mapping[str, Tensor]) -> Batch:
            batch = next_batch(params)
            return batch._replace(x=batch.x.unflatten(-1, (1, 8, 8)))

        return reshaped

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        net, groups = self.module(), len(theta) // len(batch.x)
        return torch.stack(
            [
                cross_entropy(
                    functional_call(net, self.spec.unflatten(row), (batch.x[k // groups],)),
                    batch.y[k // groups],
                )
                for k, row in enumerate(theta)
            ]
        )

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return Task.gradients(self, params, batch)

    def evaluate(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        x, labels = self.examples(split)
        logits = torch.stack(
            [functional_call(self.module(), self.spec.unflatten(row), (x,)) for row in theta]
        )
        loss = torch.stack([cross_entropy(each, labels) for each in logits])
        return {"loss": loss, "error": (logits.argmax(2) != labels).float().mean(1)}

    def with_products(self, precision: str, *, compile: bool = False) -> "Convolutions":
        if precision != "float32" or compile:
            raise ValueError("knows float32 without compile alone")
        return self


PLAN = RunPlan(num_steps=12, batch_size=(32,), num_checkpoints=3)
TINY = Recipe(text="tiny", plan=PLAN, stack_size=4, splits=("test",))


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("other", [VmapStack, FactoryStack])
def test_alternatives_train_the_same_networks(digits: Task, other: type, group_size: int) -> None:
    plan = dataclasses.replace(PLAN, group_size=group_size)
    runs = plan.runs(range(4))
    plain, stack = PlainLoop(digits, plan, runs), other(digits, plan, runs)
    # Of how far networks moved: sums in another order, float32
    assert check_same_networks(plain, stack, steps=8, tolerance=1e-4) < 1e-4
    assert (plain.theta() - plain.start).abs().max() > 0.01
    for split in ("validation", "test"):
        expected = plain.evaluate(split)
        for name, values in stack.evaluate(split).items():
            torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-5)


def test_bfloat16_products_are_near_the_plain_loop(digits: Task) -> None:
    plan = dataclasses.replace(PLAN, precision="bfloat16")
    runs = plan.runs(range(4))
    difference = check_same_networks(
        PlainLoop(digits, plan, runs), FactoryStack(digits, plan, runs), steps=8, tolerance=0.2
    )
    assert difference > 1e-4, "it did round"


def test_unequal_work_is_refused(digits: Task) -> None:
    other = dataclasses.replace(PLAN, lr=(0.05, 0.05))
    plain = PlainLoop(digits, PLAN, PLAN.runs(range(2)))
    with pytest.raises(ValueError, match="trains other networks of digits-mlp-v0 than the plain loop"):
        check_same_networks(plain, FactoryStack(digits, other, other.runs(range(2))), steps=8, tolerance=1e-2)


def test_factory_stack_is_train_stack(digits: Task) -> None:
    runs = PLAN.runs(range(4))
    stack = FactoryStack(digits, PLAN, runs)
    stack.advance(PLAN.num_steps)
    assert torch.equal(stack.theta(), train_stack(digits, PLAN, runs).theta[:, -1])


def test_work_is_what_one_counts_by_hand(digits: Task) -> None:
    weights = 64 * 16 + 16 * 10
    forward = 2 * 32 * weights
    backward = forward + 2 * 32 * 16 * 10  # of both weights, and of the hidden layer
    expected = Work(step=forward + backward, evaluation=360 * 2 * weights)
    assert count_work(digits, TINY) == expected
    assert expected.of_run(PLAN) == 12 * expected.step + 3 * expected.evaluation


def test_published_recipe_is_eighty_gflop_a_run_and_forty_percent_evaluation() -> None:
    forward = 2 * (784 * 10 + 10 * 10)
    work = Work(step=128 * (2 * forward + 2 * 10 * 10), evaluation=10_000 * forward)
    plan = RECIPES["mnist-mlp-v0"].plan
    assert work.of_run(plan) == pytest.approx(79.6e9, rel=1e-3)
    assert 200 * work.evaluation / work.of_run(plan) == pytest.approx(0.4, abs=0.002)


def test_figures_come_from_medians() -> None:
    samples = {
        ("plain_loop", "step_s"): [8.0, 99.0, 8.0],
        ("plain_loop", "evaluation_s"): [20.0, 20.0, 0.0],
        ("plain_loop", "snapshot_s"): [1.0, 1.0, 1.0],
        ("vmap", "step_s"): [4.0, 4.0, 4.0],
        ("vmap", "evaluation_s"): [10.0, 10.0, 10.0],
        ("vmap", "snapshot_s"): [1.0, 1.0, 1.0],
        ("bfloat16", "step_s"): [1.0, 2.0, 0.0],
        ("bfloat16", "evaluation_s"): [3.0, 3.0, 3.0],
        ("bfloat16", "snapshot_s"): [1.0, 0.0, 9.0],
        ("all", "parquet_s"): [1.0, 1.0, 5.0],
        ("peak", "float32"): [2.0, 2.0, 7.0],
        ("peak", "bfloat16"): [9.0, 4.0, 4.0],
    }
    work = Work(step=int(1e9), evaluation=int(2e9))
    found = figures(TINY, work, {"bfloat16": "bfloat16"}, samples)
    plain, vmap, ours = (found["contenders"][name] for name in ("plain_loop", "vmap", "bfloat16"))
    assert plain["cpu_s_per_run"] == 12 * 8 + 3 * (20 + 1 + 1)
    assert vmap["cpu_s_per_run"] == 12 * 4 + 3 * (10 + 1 + 1)
    assert ours["cpu_s_per_run"] == 12 * 1 + 3 * (3 + 1 + 1)
    assert ours["times_plain_loop"] == 162 / 27
    assert ours["times_vmap"] == 84 / 27
    assert plain["times_vmap"] == 84 / 162
    assert found["gflop_per_run"] == 18
    assert found["evaluation_share_of_gflop"] == 6 / 18
    assert plain["share_of_peak"] == pytest.approx(18 / 162 / 2)
    assert ours["share_of_peak"] == pytest.approx(18 / 27 / 4)
    assert ours["step_share_of_peak"] == pytest.approx(1 / 1 / 4)
    assert "times_plain_loop" not in plain


def test_all_take_turns_and_each_round_begins_with_another() -> None:
    order: list[str] = []

    def probe(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = clock.interleaved({name: lambda name=name: probe(name) for name in "abc"}, 2)
    assert order == ["a", "b", "c", "b", "c", "a"]
    assert samples == {"a": [1.0, 6.0], "b": [2.0, 4.0], "c": [3.0, 5.0]}


def test_variants_fall_back_where_a_task_cannot_be_compiled(digits: Task) -> None:
    compiled = Variant.of_name("bfloat16_compiled")
    assert compiled == Variant(precision="bfloat16", compile=True)
    assert compiled.of_task(digits) == compiled
    quadratic = Quadratic()
    quadratic.id = "quadratic-v0"
    assert compiled.of_task(quadratic) is None
    assert Variant.of_name("float32_compiled").of_task(quadratic) == Variant.of_name("float32")


def test_task_without_a_plain_module_cannot_be_measured(tmp_path: Path) -> None:
    task = Quadratic()
    task.id = "quadratic-v0"
    with pytest.raises(ValueError, match="quadratic-v0 gives no plain module"):
        measure_factory(task, TINY, ("float32",), repeats=1, seconds=1e-4, folder=tmp_path)


def test_factory_is_measured_from_end_to_end(digits: Task, tmp_path: Path) -> None:
    found = measure_factory(digits, TINY, ("float32", "bfloat16"), repeats=2, seconds=1e-4, folder=tmp_path)
    assert set(found["contenders"]) == {"plain_loop", "vmap", "float32", "bfloat16"}
    for each in found["contenders"].values():
        assert all(math.isfinite(value) and value > 0 for value in each.values())
    assert all(len(values) == 2 for values in found["samples"].values())
    assert list(tmp_path.iterdir()) == []


def test_networks_other_than_mlps_are_measured_alike(digits: MLPClassifier, tmp_path: Path) -> None:
    task = Convolutions(digits.data)
    task.id = "convolutions-v0"
    # Of 9 positions and 3 channels: no gradient of the images, one of the hidden layer
    forward = 2 * 32 * (9 * 3 * 9 + 27 * 10)
    assert count_work(task, TINY).step == 2 * forward + 2 * 32 * 27 * 10
    variants = ("float32_compiled", "bfloat16_compiled")
    recipe = dataclasses.replace(TINY, plan=dataclasses.replace(PLAN, group_size=2), chunk=100)
    found = measure_factory(task, recipe, variants, repeats=1, seconds=1e-4, folder=tmp_path)
    assert set(found["contenders"]) == {"plain_loop", "vmap", "float32"}


SHIFTS = (0.01, 0.03, 0.02, 0.02)


def test_whole_stacks_are_trained_and_removed(digits: Task, tmp_path: Path) -> None:
    found, finals = whole_stacks(digits, TINY, Variant.of_name("float32"), tmp_path)
    assert {len(values) for values in finals.values()} == {2 * TINY.stack_size}
    assert all(0 < error < 1 for error in finals["test_error"])
    assert found["share_of_peak"] > 0
    assert found["cpu_s_per_run"] < found["cpu_s_per_run_with_validation"]
    assert list(tmp_path.iterdir()) == []


def test_paired_runs_show_a_difference_that_means_alone_would_hide() -> None:
    reference = [0.1, 0.5, 0.9, 0.3]
    found = paired_difference(
        [value + shift for value, shift in zip(reference, SHIFTS, strict=True)], reference
    )
    # by hand: mean 0.02, standard deviation 0.01 / sqrt(1.5), t(3) at 97.5 % = 3.18245
    half = 3.18245 * 0.01 * math.sqrt(2 / 3) / math.sqrt(4)
    assert found["mean_difference"] == pytest.approx(0.02)
    assert (found["low"], found["high"]) == pytest.approx((0.02 - half, 0.02 + half), rel=1e-4)
    assert found["p_value"] < 0.05
    assert found["reference"] == pytest.approx(0.45)
    same = paired_difference([0.2, 0.3, 0.4, 0.5], [0.3, 0.2, 0.5, 0.4])
    assert same["p_value"] == pytest.approx(1)
    with pytest.raises(ValueError, match="3 and 2 runs"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_storage_is_measured_and_every_format_gives_back_what_was_stored(tmp_path: Path) -> None:
    found = storage.measure_storage(repeats=2, folder=tmp_path, num_runs=2, num_checkpoints=3)
    formats = found["formats"]
    assert {"parquet_float32", "parquet_bfloat16", "safetensors_files", "npy"} <= set(formats)
    for each in formats.values():
        assert all(math.isfinite(value) and value > 0 for value in each.values())
    # of 7,960 parameters: headers and indices are the rest
    assert formats["npy"]["bytes_per_checkpoint"] == pytest.approx(4 * 7960, rel=0.01)
    assert formats["parquet_bfloat16"]["bytes_per_checkpoint"] < formats["npy"]["bytes_per_checkpoint"]
    assert list(tmp_path.iterdir()) == []


def test_storage_figures_come_from_medians() -> None:
    spec = ParamSpec.of_module(MLP((2, 1)))  # 3 parameters
    rows = Rows(torch.arange(2), torch.zeros(2, 5), torch.zeros(2, 5, 3), {})
    seconds = {"write": (2.0, 4.0), "scan": (1.0, 6.0), "read_run": (0.5, 1.0)}
    samples = {}
    for kind, (ours, theirs) in seconds.items():
        samples["parquet_bfloat16", f"{kind}_s"] = [ours, ours, 99.0]
        samples["lmdb_pickle", f"{kind}_s"] = [0.0, theirs, theirs]
    found = storage.figures(rows, {"parquet_bfloat16": 7.0, "lmdb_pickle": 9.0}, samples, spec)
    ours, theirs = found["formats"]["parquet_bfloat16"], found["formats"]["lmdb_pickle"]
    assert found["checkpoints"] == 10
    assert ours["write_mb_per_cpu_s"] == pytest.approx(10 * 3 * 2 / 1e6 / 2)
    assert theirs["scan_mb_per_cpu_s"] == pytest.approx(10 * 3 * 4 / 1e6 / 6)
    assert (ours["write_times_lmdb"], ours["scan_times_lmdb"], ours["read_run_times_lmdb"]) == (2, 6, 2)
    assert ours["bytes_per_checkpoint"] == 7


def test_storage_that_loses_something_is_refused(tmp_path: Path) -> None:
    store = storage.NpyStore(tmp_path)
    theta = torch.ones(2, 3, 4)
    store.write(Rows(torch.arange(2), torch.zeros(2, 3), theta, {}))
    with pytest.raises(ValueError, match="npy does not give back"):
        storage._check("npy", store, theta + 1)
