"""ModuleTask: a user's module equals the fast path, and what cannot be a task is refused with its cure."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ckpt_factory import MLP, ModuleTask, RunPlan, Symmetry, check_task, register, registry, train_stack
from ckpt_factory.tasks import Batch, MLPClassifier
from ckpt_factory.tasks.base import seeded
from tests.conftest import unchecked

PlainMLP = unchecked(MLP)
SPLITS = ("train", "validation", "test")


def rows(num: int = 40, width: int = 6, classes: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return {
        split: (torch.randn(num, width, generator=rng), torch.randint(classes, (num,), generator=rng))
        for split in SPLITS
    }


def images() -> dict[str, tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return {
        split: (torch.randn(24, 2, 6, 6, generator=rng), torch.randint(3, (24,), generator=rng))
        for split in SPLITS
    }


def digits_mlp() -> nn.Module:
    return PlainMLP((64, 16, 10))


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(1, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Recurrent(nn.Module):
    """A GRU: vmap knows nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x.view(-1, 3, 2))[0][:, -1])


def small_task() -> ModuleTask:
    return ModuleTask(small_mlp, rows())


def convolutional_task() -> ModuleTask:
    return ModuleTask(small_cnn, images())


def recurrent_task() -> ModuleTask:
    return ModuleTask(Recurrent, rows())


for name, entry_point in (
    ("small-module-v0", small_task),
    ("convolutional-module-v0", convolutional_task),
    ("recurrent-module-v0", recurrent_task),
):
    register(name, entry_point)


@pytest.fixture(scope="module")
def same_as_digits(digits: MLPClassifier) -> ModuleTask:
    data = {s: (digits._normalise(digits.images[s]), digits.labels[s]) for s in SPLITS}
    return ModuleTask(digits_mlp, data)


@pytest.mark.parametrize("name", ["small-module-v0", "convolutional-module-v0", "recurrent-module-v0"])
def test_the_contract_holds(name: str) -> None:
    task = registry[name].entry_point()
    task.id = f"{__name__}:{name}"
    check_task(task)


def test_an_mlp_is_the_same_task_as_the_fast_path(digits: MLPClassifier, same_as_digits: ModuleTask) -> None:
    assert same_as_digits.spec == digits.spec
    assert same_as_digits.symmetry == digits.symmetry
    assert same_as_digits.metrics == digits.metrics
    theta = 2 * digits.init([seeded(0, k) for k in range(6)])
    batches = [
        task.sampler([seeded(1), seeded(2)], 32)(task.spec.unflatten(theta))
        for task in (digits, same_as_digits)
    ]
    assert torch.equal(batches[0].x, batches[1].x)
    assert torch.equal(batches[0].y, batches[1].y)
    batch, params = Batch(batches[0].x, batches[0].y), digits.spec.unflatten(theta)
    # float32 sums in another order, here and below
    torch.testing.assert_close(same_as_digits.loss(theta, batch), digits.loss(theta, batch))
    for name, value in digits.gradients(params, batch).items():
        torch.testing.assert_close(same_as_digits.gradients(params, batch)[name], value, rtol=1e-4, atol=1e-6)
    for split in SPLITS:
        for name, value in digits.evaluate(theta, split).items():
            torch.testing.assert_close(same_as_digits.evaluate(theta, split)[name], value)


def test_a_zoo_of_it_is_the_zoo_of_the_fast_path(
    digits: MLPClassifier, same_as_digits: ModuleTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RunPlan(num_steps=20, batch_size=(32,), num_checkpoints=3)
    monkeypatch.setattr(same_as_digits, "init", digits.init)
    runs = [plan.run(k) for k in range(3)]
    ours, theirs = train_stack(same_as_digits, plan, runs), train_stack(digits, plan, runs)
    # float32 sums in another order, over 20 steps of momentum
    torch.testing.assert_close(ours.theta, theirs.theta, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [small_task, convolutional_task])
def test_the_loop_equals_the_stack(make: Callable[[], ModuleTask], monkeypatch: pytest.MonkeyPatch) -> None:
    task = make()
    theta = task.init([seeded(0, k) for k in range(4)])
    batch = task.sampler([seeded(1), seeded(2)], 8)(task.spec.unflatten(theta))

    def everything() -> list[Tensor]:
        gradients = task.spec.flatten(task.gradients(task.spec.unflatten(theta), batch))
        return [task.loss(theta, batch), gradients, *task.evaluate(theta, "test").values()]

    assert task.can_stack
    monkeypatch.setattr(task, "_looped", lambda device: True)
    looped = everything()
    monkeypatch.setattr(task, "_looped", lambda device: False)
    for one, other in zip(looped, everything(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_convolutions_are_looped_on_a_cpu_and_stacked_elsewhere() -> None:
    assert convolutional_task()._looped(torch.device("cpu"))
    assert not convolutional_task()._looped(torch.device("cuda"))
    assert not small_task()._looped(torch.device("cpu"))


def test_what_cannot_be_stacked_is_looped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    task = recurrent_task()
    assert task._looped(torch.device("cuda"))
    assert "Recurrent is trained network by network" in caplog.text


def test_init_is_that_of_the_module_and_leaves_the_global_generator_alone() -> None:
    task, state = small_task(), torch.get_rng_state()
    theta = task.init([seeded(0), seeded(1)])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(theta[0], theta[1])
    params = task.spec.unflatten(theta)
    assert params["0.weight"].abs().max() <= 6**-0.5
    assert (params["1.weight"] == 1).all()


def test_symmetry_is_derived() -> None:
    assert small_task().symmetry.sizes == {"P0": 5}
    assert small_task().notes == ()


def test_a_symmetry_that_cannot_be_derived_is_none_and_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task = recurrent_task()
    assert task.symmetry.sizes == {}
    assert "no rule for GRU 'gru'" in task.notes[0]
    assert task.notes[0] in caplog.text


def test_no_permutations_work_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    """What augmentation and check_task do with a symmetry, on one that is empty."""
    task = recurrent_task()
    symmetry, theta = task.symmetry, task.init([seeded(0), seeded(1)])
    assert symmetry.random(2, rng=seeded(0)) == symmetry.identity(2) == {}
    assert torch.equal(symmetry.apply(theta, symmetry.random(2, rng=seeded(0))), theta)
    with pytest.raises(ValueError, match="`apply` returns it as it is"):
        symmetry.index({})
    assert Symmetry(task.spec, dict(symmetry.axes_to_perm)) == symmetry


def test_data_may_be_datasets_and_double() -> None:
    plain = rows()
    data = {split: TensorDataset(x.double(), y) for split, (x, y) in plain.items()}
    task = ModuleTask(small_mlp, data)
    assert torch.equal(task.data["test"][0], plain["test"][0])
    again = ModuleTask(small_mlp, task.data)  # what a worker gets
    assert again.spec == task.spec


def count_wrong(outputs: Tensor, y: Tensor) -> Tensor:
    """Not a mean over examples."""
    return (outputs.argmax(1) != y).sum() ** 2


def test_own_metrics_see_a_whole_split(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"score": count_wrong, "loss": F.cross_entropy}
    task = ModuleTask(small_mlp, rows(), metrics=metrics, metric="score", objective="max", inputs="random")
    assert (task.metric, task.metrics, task.objective, task.inputs) == (
        "score",
        ("score", "loss"),
        "max",
        "random",
    )
    theta = task.init([seeded(k) for k in range(3)])
    whole = task.evaluate(theta, "validation")
    monkeypatch.setattr("ckpt_factory.tasks.modules.EVALUATION_BLOCK", 7)
    monkeypatch.setattr("ckpt_factory.tasks.modules.OUTPUT_NUMBERS", 1)
    for name, values in task.evaluate(theta, "validation").items():
        torch.testing.assert_close(values, whole[name])
    x, y = task.data["validation"]
    for k in range(3):
        net = small_mlp()
        net.load_state_dict(task.spec.unflatten(theta[k]))
        assert whole["score"][k] == count_wrong(net(x), y)


def test_regression_has_no_error_rate() -> None:
    data = {split: (x, x[:, :3]) for split, (x, _) in rows().items()}
    task = ModuleTask(small_mlp, data, loss=F.mse_loss)
    assert task.metrics == ("loss",)
    assert task.unused == ("label_noise", "gamma", "loss")  # its runs have no cross-entropy
    with pytest.raises(ValueError, match="metric is 'error'; expected one of loss"):
        ModuleTask(small_mlp, data, loss=F.mse_loss, metric="error")


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    net[1].weight = net[0].weight
    return net


def frozen() -> nn.Module:
    net = small_mlp()
    net[0].requires_grad_(False)
    return net


class Noisy(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(super().forward(input))


REFUSED_MODULES: list[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)),
        "BatchNorm1d '0' .*use GroupNorm or LayerNorm",
    ),
    (
        lambda: nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)),
        "BatchNorm1d '0' .*use GroupNorm or LayerNorm",
    ),
    (lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.1)), "Dropout '1' is random; leave it out"),
    (lambda: Noisy(6, 3), "Noisy gives other outputs each time; leave out what is random"),
    (lambda: nn.utils.spectral_norm(nn.Linear(6, 3)), r"has buffers \(weight_u.*GroupNorm or LayerNorm"),
    (tied, "parameters 0.weight and 1.weight are one and the same"),
    (frozen, r"parameter 0.weight is torch.float32, frozen; expected float32 that is trained"),
    (lambda: small_mlp().double(), "parameter 0.weight is torch.float64; expected float32"),
    (lambda: nn.LazyLinear(3), "parameter weight has no shape yet"),
    (nn.Flatten, "Flatten has no parameters to train"),
    (lambda: nn.Linear(7, 3), r"Linear does not take inputs of shape \(4, 6\), torch.float32: "),
    (lambda: nn.LSTM(6, 3), "LSTM gives tuple for 4 examples; expected a tensor"),
    (lambda: nn.Linear(6, 2), "train: label 2 of example .*2 outputs, so labels are 0 to 1"),
]


@pytest.mark.parametrize(("network", "words"), REFUSED_MODULES, ids=[words for _, words in REFUSED_MODULES])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_a_module_that_cannot_be_a_task_is_refused(network: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        ModuleTask(network, rows())
    assert "\n" not in str(error.value)


def bad_data() -> Iterator[tuple[Any, str]]:
    good = rows()
    x, y = good["test"]
    yield {"train": good["train"]}, 'data has train; expected the splits "train", "validation" and "test"'
    yield [x, y], "data has list; expected the splits"
    yield good | {"test": x}, "test is Tensor; expected tensors (x, y)"
    yield good | {"test": (x, y[1:])}, "test: x is (40, 6) and y (39,); expected N > 0 of each"
    yield good | {"test": (x[:0], y[:0])}, "test: x is (0, 6) and y (0,); expected N > 0 of each"
    yield good | {"test": (x[:, 1:], y)}, "test: inputs of shape (5,), torch.float32; those of train are (6,)"
    yield good | {"test": (x, y.float())}, "test: targets of shape (), torch.float32; those of train are ()"
    yield good | {"test": (x, y.index_fill(0, torch.tensor([7]), 3))}, "test: label 3 of example 7"
    yield good | {"validation": (x, y - 1)}, "validation: label -1 of example"
    yield good | {"train": (x / 0, y)}, "train: inputs that are not finite"
    yield (
        {s: (x, torch.zeros(40, 2, dtype=torch.int64)) for s in SPLITS},
        "loss and metrics do not take outputs",
    )


@pytest.mark.parametrize(("data", "words"), list(bad_data()), ids=[words for _, words in bad_data()])
def test_data_that_do_not_fit_are_refused(data: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        ModuleTask(small_mlp, data)
    assert "\n" not in str(error.value)


def test_examples_of_different_sizes_are_refused() -> None:
    examples = [(torch.zeros(6), 0), (torch.zeros(5), 1)]

    class Uneven(TensorDataset):
        def __init__(self) -> None: ...

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return examples[index]

    with pytest.raises(ValueError, match="train: examples of different sizes or kinds"):
        ModuleTask(small_mlp, rows() | {"train": Uneven()})


def test_a_loss_for_each_example_is_refused() -> None:
    def unreduced(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="none")

    with pytest.raises(ValueError, match=r"loss is of shape \(4,\); expected one number"):
        ModuleTask(small_mlp, rows(), loss=unreduced)


def test_a_modules_labels_may_be_wrong_where_they_are_of_classes() -> None:
    data = rows()
    data["train"] = (data["train"][0], torch.arange(40) % 3)
    task = ModuleTask(small_mlp, data)
    plan = RunPlan(label_noise=(0.3, 0.3), batch_size=(20,))
    runs = plan.runs(range(50))
    draw = task.sampler(plan.order_rngs(runs), 20, plan.variation(runs))
    batches = [draw(task.spec.unflatten(torch.zeros(50, task.spec.D))) for _ in range(2)]  # one epoch
    seen = {(tuple(x.tolist()), int(y)) for b in batches for x, y in zip(b.x[0], b.y[0], strict=True)}
    true = {tuple(x.tolist()): int(y) for x, y in zip(*data["train"], strict=True)}
    assert len(seen) == 40
    assert 0 < sum(true[x] != y for x, y in seen) < 40
    wrong = torch.stack([b.y for b in batches]) != torch.stack(
        [torch.tensor([[true[tuple(x.tolist())] for x in group] for group in b.x]) for b in batches]
    )
    # 2,000 labels: the standard deviation of their share of wrong ones is 0.01
    assert wrong.float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_label_noise_is_refused_where_targets_are_no_classes() -> None:
    data = {split: (x, torch.randn(len(x), 3)) for split, (x, _) in rows().items()}
    task = ModuleTask(small_mlp, data, loss=F.mse_loss)
    plan = RunPlan(label_noise=(0.3, 0.3))
    with pytest.raises(ValueError, match="no labels of classes that could be wrong"):
        task.sampler(plan.order_rngs(plan.runs([0])), 8, plan.variation(plan.runs([0])))
