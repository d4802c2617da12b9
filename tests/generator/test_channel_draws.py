"""Channels: which metrics there are, and which of them are prompted in training."""

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.channels import columns_of_names, prompt_some, promptable, with_objectives
from generator.training.pairs import Pairs, Reservoir, Runs

BOTH = ("validation_loss", "validation_error")


@pytest.mark.parametrize("metrics", [2, 3])
def test_each_choice_of_metrics_is_prompted_equally_often(metrics: int) -> None:
    num, values = 21_000, torch.ones(21_000, metrics)
    pairs = prompt_some(Pairs(values[:, :1], values, values[:, :1], values), rng=seeded(0))
    assert torch.equal(pairs.start_metric, values)
    code = (~pairs.prompt.isnan() * 2 ** torch.arange(metrics)).sum(1)
    count = torch.bincount(code, minlength=2**metrics)
    assert count[0] == 0, "something is always prompted"
    expected = num / (2**metrics - 1)
    # binomial; five standard deviations
    assert ((count[1:] - expected).abs() < 5 * expected**0.5).all()


def test_a_single_metric_is_always_prompted_and_takes_no_random_number() -> None:
    values, rng = torch.ones(5, 1), seeded(0)
    pairs, state = Pairs(values, values, values, values), rng.get_state()
    assert prompt_some(pairs, rng=rng) is pairs
    assert torch.equal(rng.get_state(), state)


def test_targets_cover_the_levels_of_every_metric() -> None:
    """The one metric falls at once, the other only at the end: each has its levels in the targets."""
    early, late = torch.zeros(64, 40), torch.ones(64, 40)
    early[:, 0], early[:, 1] = 1.0, (torch.arange(64) + 0.5) / 64
    late[:, -1], late[:, -2] = 0.0, (torch.arange(64) + 0.5) / 64
    reservoir = Reservoir(64)
    reservoir.push(Runs(torch.zeros(64, 40, 1), torch.stack([early, late], 2)))
    prompt = reservoir.sample(20_000, rng=seeded(0)).prompt
    for metric in prompt.T:
        share = torch.histc(metric, 16, 0, 1) / len(metric)
        # a quarter of the targets spread over 16 bins is .0156 each; a uniform choice would give .0016
        assert share.min() > 0.01


def test_names_are_those_of_the_zoo_and_its_own_comes_first(digits: Task, digits_zoo: Zoo) -> None:
    header = digits_zoo.header
    assert promptable(header, digits) == list(BOTH)
    assert columns_of_names((), header, digits) == BOTH[:1]
    assert columns_of_names(("error", "loss"), header, digits) == BOTH
    with pytest.raises(ValueError, match=r"unknown metric 'auc'; the zoo has loss, error"):
        columns_of_names(("loss", "auc"), header, digits)
    with pytest.raises(ValueError, match=r"expected the zoo's own among them: loss error"):
        columns_of_names(("error",), header, digits)


def test_objectives_follow_the_main_metric() -> None:
    loss = torch.tensor([2.0, 1.0, 0.5, 0.2])
    training = {"loss": loss, "error": loss / 3, "accuracy": 1 - loss / 3, "episodes": torch.full((4,), 16.0)}
    found = with_objectives(("loss", "error", "accuracy"), training, "min")
    assert found == (("loss", "min"), ("error", "min"), ("accuracy", "max"))
    assert with_objectives(("accuracy", "loss"), training, "max")[1] == ("loss", "min")
    with pytest.raises(ValueError, match=r"episodes is 16 in all training checkpoints: .* out of --metrics"):
        with_objectives(("loss", "episodes"), training, "min")
