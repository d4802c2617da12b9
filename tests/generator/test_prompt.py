"""Prompting: networks in, networks out, and clear words about files that are none."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.evaluation.evaluate import held_out_runs, prompt_grid, training_checkpoints
from generator.evaluation.extrapolation import same_prompts
from generator.evaluation.several import alone, together
from generator.prompt import (
    check_prompts,
    linear_prompts,
    load_network,
    measured,
    prompt_networks,
    save_networks,
)
from generator.sampling.quality import sampler_quality
from generator.sampling.samplers import Sampling

from .conftest import TRAINING_RUNS


def state_of(task: MLPClassifier) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in task.spec.unflatten(task.init([seeded(0)])[0]).items()}


def test_a_saved_network_is_the_network_that_is_loaded(tiny: MLPClassifier, tmp_path: Path) -> None:
    theta = tiny.init([seeded(k) for k in range(2)])
    paths = save_networks(tmp_path, tiny.spec, theta, ["a", "b"])
    assert [path.name for path in paths] == ["a.safetensors", "b.safetensors"]
    assert sorted(tmp_path.iterdir()) == paths
    for row, path in zip(theta, paths, strict=True):
        assert torch.equal(load_network(path, tiny.spec), row.unsqueeze(0))


def test_a_saved_network_loads_into_a_plain_torch_mlp_and_computes_the_same(
    tiny: MLPClassifier, tmp_path: Path
) -> None:
    theta = tiny.init([seeded(0)])
    (path,) = save_networks(tmp_path, tiny.spec, theta, ["net"])
    net = torch.nn.ModuleDict({"fc1": torch.nn.Linear(6, 4), "fc2": torch.nn.Linear(4, 3)})
    net.load_state_dict(safetensors.torch.load_file(path))
    net.requires_grad_(False)
    pixels = torch.from_numpy(tiny.data.images["test"]).float()
    x = (pixels / tiny.data.full_scale - tiny.data.mean) / tiny.data.std
    logits = net["fc2"](net["fc1"](x).relu())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tiny.data.labels["test"]))
    # float32, sums in another order
    assert abs(float(loss - tiny.evaluate(theta, "test")["loss"])) < 1e-5


def test_networks_of_16_bit_are_taken(tiny: MLPClassifier, tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in state_of(tiny).items()}
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    theta = load_network(tmp_path / "net.safetensors", tiny.spec)
    assert theta.dtype == torch.float32
    assert torch.equal(theta[0], tiny.spec.flatten(state).float())


def save_state(path: Path, **changes: Tensor | None) -> None:
    """A state_dict with some of its tensors replaced or, for None, taken out."""
    kept = {name: value for name, value in changes.items() if value is not None}
    safetensors.torch.save_file(kept, path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fc2.bias", None, ["missing", "fc2.bias"]),
        ("head.bias", torch.zeros(3), ["unknown", "head.bias"]),
        ("fc1.weight", torch.zeros(6, 4), ["'fc1.weight' has shape (6, 4)", "(4, 6)"]),
        ("fc1.bias", torch.tensor([0.0, torch.nan, 0.0, 0.0]), ["fc1.bias holds NaN"]),
        ("fc2.weight", torch.full((3, 4), torch.inf), ["fc2.weight holds NaN or infinity"]),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    tiny: MLPClassifier, tmp_path: Path, name: str, value: Tensor | None, words: list[str]
) -> None:
    path = tmp_path / "net.safetensors"
    save_state(path, **(state_of(tiny) | {name: value}))
    with pytest.raises(ValueError, match=r"net\.safetensors") as error:
        load_network(path, tiny.spec)
    for word in words:
        assert word in str(error.value)


def test_a_file_of_several_networks_is_refused(tiny: MLPClassifier, tmp_path: Path) -> None:
    stack = {name: value.expand(2, *value.shape).contiguous() for name, value in state_of(tiny).items()}
    safetensors.torch.save_file(stack, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        load_network(tmp_path / "net.safetensors", tiny.spec)


def test_files_that_are_no_networks_are_refused(tiny: MLPClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*nothing\.safetensors"):
        load_network(tmp_path / "nothing.safetensors", tiny.spec)
    (tmp_path / "text.safetensors").write_text("these are not the weights that you are looking for")
    torch.save(state_of(tiny), tmp_path / "pickle.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("text", "pickle", "folder"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors is not a safetensors file"):
            load_network(tmp_path / f"{name}.safetensors", tiny.spec)


def test_prompts_outside_of_what_the_zoo_has_seen_are_warned_of(generator: WeightGenerator) -> None:
    (view,) = generator.scaling.views
    scaling = replace(generator.scaling, views=(replace(view, range=(0.1, 2.5)),))
    seen = replace(generator, scaling=scaling)
    assert check_prompts(seen, [0.1, 1.0, 2.5]) == []
    (warning,) = check_prompts(seen, [0.05, 1.0, 7.5])
    for words in ("0.05, 7.5", "0.1 to 2.5", "loss"):
        assert words in warning
    assert "1," not in warning


@pytest.mark.parametrize("prompt", [float("nan"), float("inf"), -float("inf")])
def test_prompts_that_are_no_numbers_are_refused(generator: WeightGenerator, prompt: float) -> None:
    with pytest.raises(ValueError, match=f"prompt is {prompt}; expected a finite loss"):
        check_prompts(generator, [1.0, prompt])


@dataclass
class Halving:
    """Stands in for a generator: every update halves the network, and it notes what it is asked."""

    asked: list[dict[str, Any]]

    def update(self, theta: Tensor, metric: dict, prompt: dict, **settings: Any) -> Tensor:
        self.asked.append({"theta": theta, "metric": metric, "prompt": prompt} | settings)
        return theta / 2

    @property
    def origin(self) -> SimpleNamespace:
        return SimpleNamespace(prompted="validation_loss", columns=("validation_loss",))


@pytest.fixture
def halving(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A WeightGenerator as far as annotations can tell."""
    stand_in = type("HalvingGenerator", (Halving, WeightGenerator), {"__init__": Halving.__init__})
    return stand_in(asked=[])


def test_recursion_conditions_on_what_the_last_update_achieved(tiny: MLPClassifier, halving: Any) -> None:
    theta, prompt, rng = tiny.init([seeded(0), seeded(1)]), torch.tensor([0.5, 0.9]), seeded(7)
    made = prompt_networks(halving, tiny, theta, prompt, rng=rng, updates=3)
    assert len(halving.asked) == len(made.achieved) == 3
    for n, asked in enumerate(halving.asked):
        assert torch.equal(asked["theta"], theta / 2**n)
        assert torch.equal(asked["metric"]["loss"], tiny.evaluate(theta / 2**n, "validation")["loss"])
        assert torch.equal(asked["prompt"]["loss"], prompt)
        assert asked["rng"] is rng
        for split in ("validation", "test"):
            for name, values in tiny.evaluate(theta / 2 ** (n + 1), split).items():
                assert torch.equal(made.achieved[n][f"{split}_{name}"], values)
    assert torch.equal(made.theta, theta / 8)
    assert torch.equal(made.start["test_error"], tiny.evaluate(theta, "test")["error"])


def test_no_update_is_none(tiny: MLPClassifier, halving: Any) -> None:
    with pytest.raises(ValueError, match="updates is 0"):
        prompt_networks(halving, tiny, tiny.init([seeded(0)]), torch.ones(1), rng=seeded(0), updates=0)


def test_linear_prompts_run_from_the_best_to_a_share_of_the_start() -> None:
    prompts = linear_prompts(0.1, torch.tensor([2.0, 3.0]), 0.9, 5)
    expected = torch.tensor([[0.1, 0.525, 0.95, 1.375, 1.8], [0.1, 0.75, 1.4, 2.05, 2.7]])
    torch.testing.assert_close(prompts, expected)


class Counting(MLPClassifier):
    """Says which splits networks were evaluated on, network by network."""

    evaluated: list[tuple[str, float]]

    def evaluate(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        self.evaluated += [(split, float(row.sum())) for row in theta]
        return super().evaluate(theta, split)


def test_start_networks_are_measured_once_for_all_prompts_and_seeds(
    digits: MLPClassifier, digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    task = Counting(digits.data, digits.sizes)
    held_out = held_out_runs(digits_zoo, generator, 3)
    starts, training = held_out.theta[:, 0], training_checkpoints(digits_zoo, TRAINING_RUNS)
    few: dict[str, Any] = {"num_prompts": 3, "num_seeds": 2}
    samplings = [Sampling(steps=1), Sampling(steps=2)]
    ways = {
        "grid": lambda task: prompt_grid(generator, task, starts, seed=0, num_prompts=4),
        "same": lambda task: same_prompts(generator, task, starts, torch.tensor([0.5, 1.0]), seed=3),
        "alone": lambda task: alone(generator, task, starts, training, "loss", **few)[1],
        "together": lambda task: together(generator, task, starts, training, best=0.3, **few)[1],
        "quality": lambda task: list(sampler_quality(generator, task, held_out, samplings, num_prompts=3)),
    }
    for name, way in ways.items():
        task.evaluated = []
        way(task)
        for split, start in itertools.product(("validation", "test"), starts):
            assert task.evaluated.count((split, float(start.sum()))) == 1, name


def test_known_metrics_of_the_starts_change_nothing(
    digits: MLPClassifier, generator: WeightGenerator
) -> None:
    starts = digits.init([seeded(5, k) for k in range(3)])
    prompt, known = torch.full((3,), 0.5), measured(digits, starts)
    made, again = (
        prompt_networks(generator, digits, starts, prompt, rng=seeded(0), updates=2, start=start)
        for start in (None, known)
    )
    assert torch.equal(again.theta, made.theta)
    assert known.keys() == made.start.keys() == again.start.keys()
    for name, values in made.achieved[-1].items():
        assert torch.equal(again.achieved[-1][name], values)
    grid = prompt_grid(generator, digits, starts, seed=0, num_prompts=3)
    expected = [
        prompt_networks(generator, digits, starts, wish, rng=seeded(0, k)).theta
        for k, wish in enumerate(grid["prompts"].unbind(1))
    ]
    assert torch.equal(grid["theta"], torch.stack(expected, 1))
