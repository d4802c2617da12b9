"""ConvClassifier against plain PyTorch: loss, gradient, metrics, initialisation, augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ckpt_factory import ConvNet, RunPlan, Task, check_task, make, train_stack
from ckpt_factory.tasks import ConvClassifier, ImageData
from ckpt_factory.tasks.base import seeded
from ckpt_factory.tasks.loops import stacked_gradients, stacked_loss


@pytest.fixture(scope="module")
def images() -> ImageData:
    """Random colour images of 12x10 in 4 classes."""
    rng = np.random.default_rng(0)
    sizes = {"train": 90, "validation": 20, "test": 300}
    return ImageData(
        images={split: rng.integers(0, 256, (n, 3, 12, 10), dtype=np.uint8) for split, n in sizes.items()},
        labels={split: rng.integers(0, 4, n) for split, n in sizes.items()},
        full_scale=255.0,
        mean=(0.5, 0.4, 0.3),
        std=(0.3, 0.2, 0.1),
        num_classes=4,
    )


@pytest.fixture
def task(images: ImageData) -> ConvClassifier:
    task = ConvClassifier(images, augment=True)
    task.id = "cifar-cnn-v0"
    return task


def network(task: ConvClassifier, theta: torch.Tensor) -> ConvNet:
    net = ConvNet(3, task.data.num_classes)
    net.load_state_dict(task.spec.unflatten(theta))
    return net


def normalised(task: ConvClassifier, split: str) -> torch.Tensor:
    """By hand, in double precision."""
    pixels = task.data.images[split].astype(np.float64) / 255
    mean, std = (np.array(each)[:, None, None] for each in (task.data.mean, task.data.std))
    return torch.from_numpy((pixels - mean) / std).float()


def test_the_contract_holds(task: ConvClassifier) -> None:
    check_task(task)


def test_it_is_the_published_network() -> None:
    sizes = {name: value.numel() for name, value in ConvNet().state_dict().items()}
    assert sizes == {"conv1.weight": 432, "conv2.weight": 4608, "fc.weight": 320, "fc.bias": 10}
    assert ConvNet()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_loss_and_gradient_are_those_of_the_plain_module(task: ConvClassifier) -> None:
    """80 images: two whole micro-batches and a part of one."""
    theta = 2 * task.init([seeded(0, k) for k in range(4)])
    batch = task.sampler([seeded(1), seeded(2)], 80)(task.spec.unflatten(theta))
    losses = task.loss(theta, batch)
    gradients = task.gradients(task.spec.unflatten(theta), batch)
    for k in range(4):
        net = network(task, theta[k])
        loss = F.cross_entropy(net(batch.x[k // 2]), batch.y[k // 2])
        loss.backward()
        # float32 sums over 80 images in parts
        torch.testing.assert_close(losses[k], loss, rtol=1e-5, atol=1e-6)
        for name, value in net.named_parameters():
            torch.testing.assert_close(gradients[name][k], value.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_metrics_are_those_of_the_plain_module(task: ConvClassifier, split: str) -> None:
    theta = 4 * task.init([seeded(0, k) for k in range(3)])
    metrics = task.evaluate(theta, split)
    x, y = normalised(task, split), torch.from_numpy(task.data.labels[split])
    for k in range(3):
        with torch.no_grad():
            logits = network(task, theta[k])(x)
        # float32 sums over images, in blocks
        torch.testing.assert_close(metrics["loss"][k], F.cross_entropy(logits, y), rtol=1e-4, atol=1e-5)
        assert abs((logits.argmax(1) != y).float().mean() - metrics["error"][k]) < 1e-6


def test_a_network_of_zeros_or_nan_gets_everything_wrong(task: ConvClassifier) -> None:
    theta = torch.stack([torch.zeros(task.spec.D), torch.full((task.spec.D,), torch.nan)])
    assert task.evaluate(theta, "test")["error"].tolist() == [1.0, 1.0]


def test_the_loop_equals_the_stack(task: ConvClassifier) -> None:
    theta = task.init([seeded(0, k) for k in range(4)])
    params, batch = (
        task.spec.unflatten(theta),
        task.sampler([seeded(1), seeded(2)], 40)(task.spec.unflatten(theta)),
    )
    looped, stacked = (
        stacked_loss(task._loss, params, batch.x, batch.y, looped=looped) for looped in (True, False)
    )
    torch.testing.assert_close(looped, stacked, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    looped, stacked = (
        stacked_gradients(task._loss, params, batch.x, batch.y, looped=looped) for looped in (True, False)
    )
    assert looped.keys() == stacked.keys()
    for name in looped:
        torch.testing.assert_close(looped[name], stacked[name], rtol=1e-4, atol=1e-6)  # as above


def test_bfloat16_products_are_rounded_to_8_bits_and_the_metrics_are_not(task: ConvClassifier) -> None:
    theta = task.init([seeded(0)])
    params, batch = task.spec.unflatten(theta), task.sampler([seeded(1)], 64)(task.spec.unflatten(theta))
    net = network(task, theta[0]).double()
    F.cross_entropy(net(batch.x[0].double()), batch.y[0]).backward()
    task16 = task.with_products("bfloat16")

    def errors(each: Task) -> list[float]:
        """Relative to the gradients of float64."""
        found = each.gradients(params, batch)
        assert {value.dtype for value in found.values()} == {torch.float32}
        pairs = [(value.grad, found[name][0].double()) for name, value in net.named_parameters()]
        return [float((got - exact).norm() / exact.norm()) for exact, got in pairs if exact is not None]

    for rounded, plain in zip(errors(task16), errors(task), strict=True):
        # bfloat16's epsilon is 2^-8: a rounding of half of it at most, a few in a row; float32's is 2^-23
        assert 2**-11 < rounded < 0.05
        assert plain < 2**-17
    assert torch.equal(task16.evaluate(theta, "test")["loss"], task.evaluate(theta, "test")["loss"])
    again = task16.with_products("float32").gradients(params, batch)["fc.bias"]
    assert torch.equal(again, task.gradients(params, batch)["fc.bias"])
    with pytest.raises(ValueError, match="gains nothing from compile"):
        task.with_products("float32", compile=True)


@pytest.mark.parametrize("size", [32, 33, 50])
def test_micro_batches_weigh_by_their_size(task: ConvClassifier, size: int) -> None:
    """The last one is smaller: its images count as all others do."""
    theta = 2 * task.init([seeded(0)])
    params, batch = task.spec.unflatten(theta), task.sampler([seeded(1)], size)(task.spec.unflatten(theta))
    whole, parts = (
        stacked_gradients(task._loss, params, batch.x, batch.y, looped=True, micro_batch=micro_batch)
        for micro_batch in (None, 16)
    )
    for name, value in whole.items():
        assert (parts[name] - value).norm() < 1e-4 * value.norm()  # float32 sums in parts


def test_init_has_the_bounds_of_torch(task: ConvClassifier) -> None:
    theta = task.init([seeded(0, k) for k in range(40)])
    reference = [ConvNet(3, 4).state_dict() for _ in range(40)]
    for name, values in task.spec.unflatten(theta).items():
        drawn = torch.stack([state[name] for state in reference])
        # of 160 uniform draws and more, the largest is within 5 % of the bound
        assert values.abs().max() == pytest.approx(float(drawn.abs().max()), rel=0.05)
        assert abs(values.mean()) < 0.1 * values.abs().max()


def augmented(image: np.ndarray, dy: int, dx: int, mirrored: int) -> np.ndarray:
    """The dumb version: pad the normalised image, cut a window, mirror it."""
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    window = padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
    return window[:, :, ::-1] if mirrored else window


def test_training_images_are_flipped_and_cropped_as_published(task: ConvClassifier) -> None:
    image = normalised(task, "train")[0].numpy()
    variants = {what: augmented(image, *what) for what in np.ndindex(9, 9, 2)}
    seen = []
    for draw in range(60):
        (found,) = task._augmented(task.images["train"][:1], seeded(draw)).numpy()
        # float32 normalisation of pixels up to 1, by a std of 0.1
        match = [what for what, variant in variants.items() if np.abs(variant - found).max() < 1e-4]
        assert match
        seen.append(match[0])
    rows, columns, mirrored = (set(each) for each in zip(*seen, strict=True))
    # of 60 draws, all nine offsets come with probability 0.99; the published code never draws the last
    assert {0, 8} <= rows & columns
    assert mirrored == {0, 1}


def test_batches_are_a_function_of_their_group_alone(task: ConvClassifier) -> None:
    params = task.spec.unflatten(torch.zeros(2, task.spec.D))
    together, alone = task.sampler([seeded(1), seeded(2)], 40), task.sampler([seeded(2)], 40)
    batches = []
    for _ in range(5):  # over the end of an epoch
        both, one = together(params), alone(params)
        assert torch.equal(both.x[1], one.x[0])
        assert torch.equal(both.y[1], one.y[0])
        batches.append(one.x)
    assert not any(torch.equal(batches[0], other) for other in batches[1:])


def test_without_augmentation_an_epoch_is_the_images_themselves(images: ImageData) -> None:
    task = ConvClassifier(images, augment=False)
    batch = task.sampler([seeded(0)], 90)(task.spec.unflatten(torch.zeros(1, task.spec.D)))
    x = normalised(task, "train")
    distance = torch.cdist(batch.x[0].flatten(1), x.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance.amin(1) < 1e-3).all()
    assert sorted(distance.argmin(1).tolist()) == list(range(90))
    assert torch.equal(torch.from_numpy(images.labels["train"])[distance.argmin(1)], batch.y[0])


@pytest.fixture(scope="module")
def cifar(cifar_root: Path) -> Task:
    return make("cifar-cnn-v0", data_root=cifar_root)


def test_cifar_is_split_45_5_10_thousand_and_normalised_as_published(cifar: ConvClassifier) -> None:
    assert cifar.spec.D == 5370
    shapes = {split: images.shape for split, images in cifar.data.images.items()}
    assert shapes == {
        "train": (45_000, 3, 32, 32), "validation": (5_000, 3, 32, 32), "test": (10_000, 3, 32, 32),
    }  # fmt: skip
    assert cifar.inputs == "(pixels - (125.3, 123, 113.9)) / (63, 62.1, 66.7), (channels, height, width)"
    x = cifar._normalise(cifar.images["train"][:5000])
    # the published constants are of all 50,000 images
    assert x.mean((0, 2, 3)).abs().max() < 0.05
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_cifar_networks_learn(cifar: ConvClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    for images in (cifar.images, cifar.labels):  # the first 500 are enough to see it
        for split in ("validation", "test"):
            monkeypatch.setitem(images, split, images[split][:500])
    plan = RunPlan(num_steps=150, batch_size=(32,), num_checkpoints=2)
    loss = train_stack(cifar, plan, [plan.run(0)]).metrics["validation_loss"][0]
    # chance is log(10) = 2.303
    assert loss[0] > 2.25
    assert loss[-1] < 2.1
