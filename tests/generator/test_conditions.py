"""What an update is told, metrics of its starts and prompts: what cannot be is refused."""

import jaxtyping
import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from generator.artefact import WeightGenerator
from generator.channels import conditions
from generator.prompt import prompt_networks

BOTH = ("loss", "error")


@pytest.fixture
def as_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this session's run-time type checks, as whoever installs it has it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("shape", [(2,), (5,), (6, 1), (2, 6), (1, 6), (0,)])
@pytest.mark.usefixtures("as_outside")
def test_prompts_of_another_shape_say_what_is_expected(
    shape: tuple[int, ...], generator: WeightGenerator, digits: Task
) -> None:
    theta, prompt = digits.init([seeded(k) for k in range(6)]), torch.full(shape, 0.5)
    metric = torch.ones(6)
    words = rf"prompt of loss is \({', '.join(map(str, shape))},?\); expected \(6,\), one for each start"
    for given in (prompt, {"loss": prompt}):
        with pytest.raises(ValueError, match=words):
            generator.update(theta, metric, given, rng=seeded(0))
    with pytest.raises(ValueError, match=words.replace("loss", "error")):
        conditions(BOTH, dict.fromkeys(BOTH, metric), {"loss": 0.5, "error": prompt})


@pytest.mark.usefixtures("as_outside")
def test_one_prompt_may_be_for_all() -> None:
    for prompt in (0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.full((6,), 0.5)):
        starts, asked = conditions(("loss",), torch.ones(6), prompt)
        assert torch.equal(starts, torch.ones(6, 1))
        assert torch.equal(asked, torch.full((6, 1), 0.5))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_starts_are_prompted_from_finite_metrics_and_others_may_be_anything(
    bad: float, generator: WeightGenerator, digits: Task
) -> None:
    metric = torch.tensor([1.0, bad, bad, 2.0])
    with pytest.raises(ValueError, match="loss of 2 start networks is NaN or infinity; expected finite"):
        generator.update(digits.init([seeded(k) for k in range(4)]), metric, 0.5, rng=seeded(0))
    with pytest.raises(ValueError, match="error of 2 start networks is NaN"):
        conditions(BOTH, {"loss": torch.ones(4), "error": metric}, {"loss": 0.5, "error": 0.1})
    starts, asked = conditions(BOTH, {"loss": torch.ones(4), "error": metric}, {"loss": 0.5})
    assert torch.equal(starts[:, 0], torch.ones(4))
    assert torch.equal(asked[:, 0], torch.full((4,), 0.5))
    assert starts[:, 1].isnan().all()
    assert asked[:, 1].isnan().all()


@pytest.mark.parametrize("at_once", [0, -1])
def test_networks_are_sampled_some_at_once(at_once: int, generator: WeightGenerator, digits: Task) -> None:
    with pytest.raises(ValueError, match=f"at_once is {at_once}; expected at least 1"):
        generator.update(digits.init([seeded(0)]), torch.ones(1), 0.5, rng=seeded(0), at_once=at_once)


def broken(digits: Task, places: list[int]) -> Tensor:
    """Four initialisations, some with numbers so large that their loss is no number."""
    theta = digits.init([seeded(k) for k in range(4)])
    theta[places] = 1e30
    assert torch.equal(
        digits.evaluate(theta, "validation")["loss"].isfinite().nonzero()[:, 0], others(places)
    )
    return theta


def others(places: list[int]) -> Tensor:
    return torch.tensor([k for k in range(4) if k not in places], dtype=torch.int64)


@pytest.mark.parametrize("places", [[1], [0, 2], [0, 1, 2, 3]])
def test_a_broken_network_stays_as_it_is_and_the_others_are_updated(
    places: list[int], generator: WeightGenerator, digits: Task
) -> None:
    theta, sound = broken(digits, places), others(places)
    made = prompt_networks(generator, digits, theta, torch.full((4,), 0.5), rng=seeded(1), updates=2)
    assert torch.equal(made.theta[places], theta[places])
    if len(sound):
        wish = torch.full((len(sound),), 0.5)
        alone = prompt_networks(generator, digits, theta[sound], wish, rng=seeded(1), updates=2)
        assert torch.equal(made.theta[sound], alone.theta)
        assert not torch.equal(made.theta[sound], theta[sound])
