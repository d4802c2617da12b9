"""MLPClassifier: initialisation, batches and metrics against plain PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ckpt_factory import MLP
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from tests.conftest import plain_mlp


def images_of(task: MLPClassifier, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised by hand, in double precision."""
    pixels = torch.from_numpy(task.data.images[split].astype(np.float64)).flatten(1)
    x = (pixels / task.data.full_scale - task.data.mean) / task.data.std
    return x.float(), torch.from_numpy(task.data.labels[split])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_metrics_are_cross_entropy_and_error_of_the_plain_module(digits: MLPClassifier, split: str) -> None:
    theta = 4 * digits.init([seeded(0, k) for k in range(3)])
    metrics = digits.evaluate(theta, split)
    x, y = images_of(digits, split)
    for k in range(3):
        logits = plain_mlp(digits.sizes, digits.spec.unflatten(theta[k]))(x)
        # float32 sums of 64 + 16 terms and then of hundreds of images, in another order
        assert abs(F.cross_entropy(logits, y) - metrics["loss"][k]) < 1e-5 * (1 + metrics["loss"][k])
        assert abs((logits.argmax(1) != y).float().mean() - metrics["error"][k]) < 1e-6


def test_evaluation_does_not_depend_on_its_chunks(
    digits: MLPClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta = digits.init([seeded(0, k) for k in range(3)])
    whole = digits.evaluate(theta, "test")
    monkeypatch.setattr("ckpt_factory.tasks.vision.EVALUATION_CHUNK", 7)
    chunked = digits.evaluate(theta, "test")
    for name in whole:
        # float32 sums in another order
        torch.testing.assert_close(chunked[name], whole[name], rtol=1e-5, atol=1e-6)


def test_a_network_of_nan_gets_everything_wrong(digits: MLPClassifier) -> None:
    """It must not look like the best of all."""
    metrics = digits.evaluate(torch.full((1, digits.spec.D), torch.nan), "test")
    assert metrics["error"].item() == 1.0
    assert metrics["loss"].isnan()


def test_a_tie_is_an_error(digits: MLPClassifier) -> None:
    assert digits.evaluate(torch.zeros(2, digits.spec.D), "test")["error"].tolist() == [1.0, 1.0]


def test_init_has_the_bounds_of_torch_linear(digits: MLPClassifier) -> None:
    theta = digits.init([seeded(0, k) for k in range(50)])
    for name, values in digits.spec.unflatten(theta).items():
        bound = 64**-0.5 if name.startswith("fc1") else 16**-0.5
        # with 500 draws and more, the extremes of a uniform law lie within 2 % of its bounds
        assert bound * 0.98 < values.max() <= bound
        assert -bound * 0.98 > values.min() >= -bound
    torch.manual_seed(0)
    net = MLP((64, 16, 10))
    for name, value in net.state_dict().items():
        assert value.abs().max() <= (64**-0.5 if name.startswith("fc1") else 16**-0.5) + 1e-7, name


def test_an_epoch_is_without_replacement_and_the_next_is_another(digits: MLPClassifier) -> None:
    next_batch = digits.sampler([seeded(0), seeded(1)], 100)
    params = digits.spec.unflatten(torch.zeros(2, digits.spec.D))
    epochs = [torch.cat([next_batch(params).x for _ in range(10)], 1) for _ in range(2)]
    for epoch in epochs:
        assert epoch.shape == (2, 1000, 64)
        for group in epoch:
            # the digits hold a handful of images twice; with replacement 1000 draws would repeat hundreds
            assert len(group.unique(dim=0)) > 990
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0][0], epochs[0][1])


def test_images_keep_their_labels(digits: MLPClassifier) -> None:
    batch = digits.sampler([seeded(0)], 50)(digits.spec.unflatten(torch.zeros(1, digits.spec.D)))
    x, y = images_of(digits, "train")
    for image, label in zip(batch.x[0], batch.y[0], strict=True):
        same = (x - image).abs().amax(1) < 1e-5
        assert same.any()
        assert label in y[same]


def test_batches_larger_than_the_training_split_are_refused(digits: MLPClassifier) -> None:
    with pytest.raises(ValueError, match="batch_size is 1078; there are 1077 training images"):
        digits.sampler([seeded(0)], 1078)
    with pytest.raises(ValueError, match="batch_size is 0"):
        digits.sampler([seeded(0)], 0)


def test_input_moments_are_those_of_the_training_images(digits: MLPClassifier) -> None:
    x, _ = images_of(digits, "train")
    mean, covariance = digits.input_moments()["fc1"]
    # float32 against numpy's float64
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-4, atol=1e-5)
    expected = np.cov(x.double().numpy().T, bias=True)
    np.testing.assert_allclose(covariance.numpy(), expected, rtol=1e-4, atol=1e-5)
