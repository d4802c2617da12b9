"""train_stack on recipes that vary: every run is trained as its settings say, whoever its neighbours are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan, Task, make, train_stack
from ckpt_factory.initialise import initialise
from ckpt_factory.plan import InitName, OptimizerName
from ckpt_factory.tasks import ImageData, MLPClassifier
from ckpt_factory.tasks.base import Batch, Sampler, Variation, seeded
from ckpt_factory.train import check_plan, initial_networks

from .plain import plain_training

DIVERSE = RunPlan(
    seed=1,
    num_steps=30,
    batch_size=(16, 32),
    lr=(0.03, 0.2),
    weight_decay=(1e-4, 1e-2),
    momentum=(0.5, 0.9),
    init=get_args(InitName),
    init_scale=(0.5, 1.5),
    label_noise=(0.0, 0.4),
    data_fraction=(0.1, 1.0),
    loss=("cross-entropy", "tailr"),
    gamma=(0.1, 0.8),
    group_size=2,
    block_size=4,
    num_checkpoints=6,
    spacing="random",
)


def test_runs_of_a_diverse_stack_equal_plain_pytorch_trainings(digits: MLPClassifier) -> None:
    """Batch size, rates, initialisation, loss, wrong labels and share of the data at once."""
    runs = DIVERSE.runs(range(12))
    for name in ("batch_size", "init", "loss", "label_noise"):
        assert len({getattr(run, name) for run in runs}) > 1, name
    rows = train_stack(digits, DIVERSE, runs)
    assert rows.run_ids.tolist() == list(range(12))
    assert rows.steps.tolist() == [DIVERSE.steps(run_id) for run_id in range(12)]
    for k, run in enumerate(runs):
        # float32 rounding, amplified along 30 steps; an update moves parameters by 1e-2
        torch.testing.assert_close(rows.theta[k], plain_training(digits, DIVERSE, run), rtol=1e-3, atol=2e-4)


def test_a_diverse_stack_equals_its_blocks_bit_by_bit(digits: MLPClassifier) -> None:
    """With every optimizer; blocks are the largest parts that are trained by the same products."""
    plan = replace(DIVERSE, optimizer=get_args(OptimizerName), num_steps=12)
    runs = plan.runs(range(20))
    rows, first = train_stack(digits, plan, runs), 0
    assert len(plan.blocks(runs)) >= 4
    for block in plan.blocks(runs):
        part, alone = slice(first, first + len(block)), train_stack(digits, plan, block)
        assert torch.equal(rows.run_ids[part], alone.run_ids)
        assert torch.equal(rows.steps[part], alone.steps)
        assert torch.equal(rows.theta[part], alone.theta)
        for name, values in rows.metrics.items():
            assert torch.equal(values[part], alone.metrics[name])
        first += len(block)


def test_a_diverse_stack_equals_its_groups(digits: MLPClassifier) -> None:
    runs = DIVERSE.runs(range(12))
    rows = train_stack(digits, DIVERSE, runs)
    for first in range(0, 12, 2):
        alone = train_stack(digits, DIVERSE, runs[first : first + 2])
        # matrix products of another shape sum in another order: float32 rounding, 30 steps long
        torch.testing.assert_close(rows.theta[first : first + 2], alone.theta, rtol=1e-3, atol=2e-4)


def test_optimizers_are_those_of_the_table(digits: MLPClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block asks for its own by name, with its runs' rates in the optimizer's own units."""
    from ckpt_factory import train  # noqa: PLC0415  where the name is looked up

    asked, make_optimizer = [], train.make_optimizer

    def watching(name: str, params: Mapping[str, Tensor], **settings) -> torch.optim.Optimizer:
        asked.append((name, {key: settings[key] for key in ("lr", "weight_decay", "momentum")}))
        return make_optimizer(name, params, **settings)

    monkeypatch.setattr(train, "make_optimizer", watching)
    plan = replace(DIVERSE, optimizer=get_args(OptimizerName), num_steps=5)
    runs = plan.runs(range(20))
    train_stack(digits, plan, runs)
    assert [name for name, _ in asked] == [block[0].optimizer for block in plan.blocks(runs)]
    for (_, settings), block in zip(asked, plan.blocks(runs), strict=True):
        for key, values in settings.items():
            assert values.tolist() == pytest.approx([getattr(run, key) for run in block], rel=1e-6), key


def test_every_run_starts_by_the_rule_that_it_has_drawn(digits: MLPClassifier) -> None:
    runs = DIVERSE.runs(range(16))
    assert {run.init for run in runs} == set(get_args(InitName))
    start, rows = initial_networks(digits, DIVERSE, runs), train_stack(digits, DIVERSE, runs)
    for k, run in enumerate(runs):
        (rng,) = DIVERSE.init_rngs([run])
        own = run.init == "default"
        zeros = torch.zeros(digits.spec.D)
        expected = digits.init([rng])[0] if own else initialise(zeros, digits.spec, run.init, rng=rng)
        assert torch.equal(start[k], expected)
        assert torch.equal(rows.theta[k, 0], expected * torch.tensor(run.init_scale))


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_tailrs_gradient_by_hand_is_autograds_of_the_loss(digits: MLPClassifier, group_size: int) -> None:
    """With a gamma for each run, two of them cross-entropy."""
    gamma = (0.0, 0.1, 0.7, 0.95, 0.0, 0.3, 0.5, 0.99)
    groups = 8 // group_size
    variation = Variation(label_noise=(0.0,) * groups, data_fraction=(1.0,) * groups, gamma=gamma)
    theta = 3 * digits.init([seeded(0, k) for k in range(8)])
    params = {name: value.contiguous() for name, value in digits.spec.unflatten(theta).items()}
    batch = digits.sampler([seeded(1, g) for g in range(groups)], 32, variation)(params)
    ours, autograd = digits.gradients(params, batch), Task.gradients(digits, params, batch)
    for name, gradient in ours.items():
        # float32 sums of 32 images in another order; gradients are of order 0.1
        torch.testing.assert_close(gradient, autograd[name], rtol=1e-4, atol=1e-6)
    plain = digits.sampler([seeded(1, g) for g in range(groups)], 32)(params)
    cross_entropy = Task.gradients(digits, params, plain)
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient[[0, 4]], cross_entropy[name][[0, 4]], rtol=1e-4, atol=1e-6
        )  # as above
        assert (gradient[3] - cross_entropy[name][3]).abs().max() > 1e-3


NUM_IMAGES = 2000


class Numbered(MLPClassifier):
    """2,000 images that say their number, of five classes; keeps the batches that it gives."""

    def __init__(self) -> None:
        number = np.arange(NUM_IMAGES)
        images = np.stack([number // 256, number % 256], 1).astype(np.uint8)
        labels = (number % 5).astype(np.int64)
        splits = ("train", "validation", "test")
        data = ImageData(
            images=dict.fromkeys(splits, images),
            labels=dict.fromkeys(splits, labels),
            full_scale=255.0,
            mean=0.5,
            std=0.5,
        )
        super().__init__(data, (2, 4, 5))
        self.id = "numbered-v0"
        self.seen: list[tuple[Tensor, Tensor]] = []

    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        inner = super().sampler(rngs, batch_size, variation)

        def next_batch(params: Mapping[str, Tensor]) -> Batch:
            batch = inner(params)
            pixels = ((batch.x * self.data.std + self.data.mean) * self.data.full_scale).round().long()
            self.seen.append((pixels[..., 0] * 256 + pixels[..., 1], batch.y))
            return batch

        return next_batch


def seen_in_training(plan: RunPlan, num_groups: int) -> list[dict[int, set[int]]]:
    """{number of an image: the labels that it came with} of each group of a stack."""
    task = Numbered()
    train_stack(task, plan, plan.runs(range(num_groups * plan.group_size)))
    assert len(task.seen) == plan.num_steps
    found: list[dict[int, set[int]]] = [{} for _ in range(num_groups)]
    for numbers, labels in task.seen:
        for group, (row, given) in enumerate(zip(numbers.tolist(), labels.tolist(), strict=True)):
            for number, label in zip(row, given, strict=True):
                found[group].setdefault(number, set()).add(label)
    return found


def test_of_a_share_of_the_data_no_other_image_is_ever_seen() -> None:
    plan = RunPlan(num_steps=60, num_checkpoints=2, batch_size=(100,), group_size=2, data_fraction=(0.1, 0.9))
    groups = seen_in_training(plan, 3)
    for group, images in enumerate(groups):
        size = round(plan.run(2 * group).data_fraction * NUM_IMAGES)
        # of three epochs and more, each drops less than one batch of 100: hardly an image is left out
        assert 0.99 * size <= len(images) <= size
        assert all(labels == {number % 5} for number, labels in images.items()), "labels are their own"
    sizes = [len(images) for images in groups]
    assert max(sizes) - min(sizes) > 200, "every group has its own share"


def test_wrong_labels_are_the_right_share_never_the_own_class_and_the_same_in_all_epochs() -> None:
    plan = RunPlan(num_steps=60, num_checkpoints=2, batch_size=(100,), label_noise=(0.05, 0.6), group_size=2)
    groups = seen_in_training(plan, 3)
    wrong = []
    for group, images in enumerate(groups):
        assert set(images) == set(range(NUM_IMAGES))
        assert all(len(labels) == 1 for labels in images.values()), "three epochs, one label"
        shift = np.array([(next(iter(labels)) - number) % 5 for number, labels in sorted(images.items())])
        share = plan.run(2 * group).label_noise
        # the standard deviation of a share of 2,000 is 0.011 at most
        assert abs((shift != 0).mean() - share) < 0.04
        counts = np.bincount(shift, minlength=5)[1:]
        # the other four classes alike: the standard deviation of each count is below 17 here
        assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())
        wrong.append(shift != 0)
    shares = [plan.run(2 * group).label_noise for group in range(3)]
    assert max(shares) - min(shares) > 0.1
    both = [(wrong[a] & wrong[b]).mean() - wrong[a].mean() * wrong[b].mean() for a, b in ((0, 1), (1, 2))]
    assert np.abs(both).max() < 0.04, "other images in every group: independent but for chance, 0.011"


def test_clean_groups_beside_noisy_ones_keep_their_labels_and_order() -> None:
    task, rngs = Numbered(), [seeded(5), seeded(6)]
    params = task.spec.unflatten(torch.zeros(2, task.spec.D))
    variation = Variation(label_noise=(0.5, 0.0), data_fraction=(0.5, 1.0), gamma=(0.0, 0.0))
    mixed = task.sampler(rngs, 40, variation)
    plain = task.sampler([seeded(6)], 40)
    for _ in range(120):  # beyond an epoch, which is 50 batches
        a, b = mixed(params), plain(params)
        assert torch.equal(a.x[1], b.x[0])
        assert torch.equal(a.y[1], b.y[0])
    numbers, labels = (torch.stack(part) for part in zip(*task.seen[::2], strict=True))
    wrong = (labels != numbers % 5).float().mean((0, 2))  # of each group
    assert abs(wrong[0] - 0.5) < 0.06  # of a thousand images: a standard deviation of 0.016
    assert wrong[1] == 0


def test_metrics_are_measured_on_clean_labels(digits: MLPClassifier) -> None:
    """Of wrong labels only training learns: a zoo's metrics are those of the task."""
    plan = RunPlan(num_steps=5, num_checkpoints=2, label_noise=(0.5, 0.5), loss=("tailr",))
    rows = train_stack(digits, plan, plan.runs(range(2)))
    for name, values in digits.metrics_of(rows.theta[:, -1]).items():
        assert torch.equal(rows.metrics[name][:, -1], values)


def test_a_schedule_by_epochs_holds_the_learning_rate_between_its_changes() -> None:
    """On the quadratic, whose steps multiply by 1 - lr a."""
    plan = RunPlan(
        num_steps=12,
        num_checkpoints=13,
        spacing="uniform",
        schedule_every=4,
        lr=(0.3, 0.3),
        momentum=(0.0, 0.0),
        weight_decay=(0.0, 0.0),
    )
    rows = train_stack(make("quadratic-v0"), plan, plan.runs(range(2)))
    ratio = rows.theta[:, 1:] / rows.theta[:, :-1]
    factor = np.repeat([(1 + np.cos(np.pi * epoch / 3)) / 2 for epoch in range(3)], 4)
    expected = 1 - 0.3 * factor[:, None] * np.linspace(0.1, 1, 8)
    # a few float32 roundings
    np.testing.assert_allclose(ratio.numpy(), np.broadcast_to(expected, ratio.shape), rtol=1e-5)


def test_bfloat16_products_train_about_as_well_and_keep_float32_parameters(digits: MLPClassifier) -> None:
    plan = RunPlan(num_steps=100, num_checkpoints=3, group_size=4)
    runs = plan.runs(range(8))
    exact = train_stack(digits, plan, runs)
    rounded = train_stack(digits, replace(plan, precision="bfloat16"), runs)
    assert rounded.theta.dtype == torch.float32
    assert torch.equal(rounded.theta[:, 0], exact.theta[:, 0]), "initialisations are not rounded"
    assert not torch.equal(rounded.theta[:, -1], rounded.theta[:, -1].bfloat16().float())
    assert not torch.equal(rounded.theta[:, -1], exact.theta[:, -1]), "products are rounded"
    for name, values in exact.metrics.items():
        # gradients differ by some 3 % of their norm at random: after 100 steps that is less than the sampling
        # noise of the 360 images that metrics are measured on
        assert (rounded.metrics[name] - values).abs().max() < 0.05, name
    moved = (exact.theta[:, -1] - exact.theta[:, 0]).norm(dim=1)
    assert ((rounded.theta[:, -1] - exact.theta[:, -1]).norm(dim=1) < 0.1 * moved).all()


def test_images_are_normalised_once_per_precision(
    digits: MLPClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = MLPClassifier(digits.data, digits.sizes)
    normalise, calls = MLPClassifier._normalise, []

    def counting(self: MLPClassifier, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        calls.append(len(images))
        return normalise(self, images, dtype)

    monkeypatch.setattr(MLPClassifier, "_normalise", counting)
    for precision in ("float32", "bfloat16", "float32", "bfloat16"):
        plan = RunPlan(num_steps=2, num_checkpoints=2, precision=precision)
        train_stack(task, plan, plan.runs(range(2)))
    assert calls == [1077, 360, 360] * 2


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("digits-mlp-v0", {"batch_size": (16, 1078)}, "batch_size is 1078; there are 1077 training images"),
        (
            "digits-mlp-v0",
            {"batch_size": (64, 16), "data_fraction": (0.05, 1.0)},
            r"batch_size is 64; there are 54 training images of 1077 \(data_fraction 0.05\)",
        ),
        ("quadratic-v0", {"label_noise": (0.0, 0.1)}, "quadratic-v0 has neither labels nor data"),
        ("quadratic-v0", {"data_fraction": (0.5, 1.0)}, "neither labels nor data"),
        ("quadratic-v0", {"loss": ("cross-entropy", "tailr")}, "neither labels nor data"),
        ("quadratic-v0", {"init": ("default", "xavier")}, "init 'xavier' is a rule for matrices"),
        (
            "quadratic-v0",
            {"precision": "bfloat16"},
            "quadratic-v0 knows precision float32 alone, not bfloat16",
        ),
        ("quadratic-v0", {"compile": True}, "has no inner loop to compile; leave out --compile"),
    ],
)
def test_a_plan_that_the_task_cannot_follow_is_refused_before_anything_is_begun(
    task: str, fields: dict, message: str
) -> None:
    plan = RunPlan(**fields)
    with pytest.raises(ValueError, match=message):
        check_plan(make(task), plan)


def test_a_plan_that_the_task_can_follow_is_accepted(digits: MLPClassifier) -> None:
    check_plan(digits, replace(DIVERSE, precision="bfloat16", compile=True))
    check_plan(make("quadratic-v0"), RunPlan(lr=(0.01, 0.1), spacing="metric", group_size=3))
