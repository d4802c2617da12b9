"""WeightGenerator: one object, one folder, no pickle."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator, _digest
from generator.card import model_card
from generator.conditioning import Calibration
from generator.model.dit import DiTConfig

from .conftest import fitted, randomise

TRAINING = {
    "parameters": 5,
    "training_runs": 13,
    "held_out_runs": 11,
    "steps": 7,
    "pairs": 70,
    "train_s": 1.5,
}
FILES = {"model.safetensors", "normalization.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def saved(generator: WeightGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "generator"
    generator.save(folder, training=TRAINING, card=model_card(generator, TRAINING))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "generator")


def updated(generator: WeightGenerator, digits: Task, **settings) -> Tensor:
    theta = digits.init([seeded(5, k) for k in range(3)])
    metric, prompt = torch.tensor([2.3, 2.4, 2.5]), torch.tensor([0.1, 0.5, 1.0])
    return generator.update(theta, metric, prompt, rng=seeded(1), **settings)


@pytest.mark.parametrize("tokens", ["chunks", "canonical", "gpt"])
def test_other_layouts_are_saved_with_all_they_need(
    tokens: str, digits: Task, digits_zoo: Zoo, tmp_path: Path
) -> None:
    made = fitted(digits, digits_zoo, DiTConfig(tokens=tokens, chunk=64, width=16, depth=1, heads=2))
    randomise(made.model)
    made.save(tmp_path, training=TRAINING, card=model_card(made, TRAINING))
    loaded = WeightGenerator.load(tmp_path)
    assert torch.equal(updated(loaded, digits), updated(made, digits))
    assert (loaded.reference is None) == (tokens != "canonical")
    assert f"| tokens | {tokens} |" in (tmp_path / "README.md").read_text()


def test_a_generator_saved_before_there_were_layouts_loads(
    generator: WeightGenerator, folder: Path, digits: Task
) -> None:
    """Its config.json knows no kinds of tokens: they are units."""
    fields = json.loads((folder / "config.json").read_text())
    for name in ("tokens", "chunk"):
        del fields["model"][name]
    (folder / "config.json").write_text(json.dumps(fields | {"fields_sha256": _digest(fields)}))
    loaded = WeightGenerator.load(folder)
    assert torch.equal(updated(loaded, digits), updated(generator, digits))


def test_a_permuted_start_network_gives_the_permuted_update_in_canonical_order(
    digits: Task, digits_zoo: Zoo
) -> None:
    """At prompting the start network alone says its order; the update comes back in the order it came in."""
    made = fitted(digits, digits_zoo, DiTConfig(tokens="canonical", width=16, depth=1, heads=2))
    randomise(made.model)
    theta, metric = digits.init([seeded(5, k) for k in range(3)]), torch.full((3,), 2.3)
    perms = digits.symmetry.random(3, rng=seeded(1))
    out = made.update(theta, metric, 0.5, rng=seeded(2))
    moved = made.update(digits.symmetry.apply(theta, perms), metric, 0.5, rng=seeded(2))
    # the same numbers through the same model: only products of networks with coordinates are of another order
    torch.testing.assert_close(moved, digits.symmetry.apply(out, perms), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "sampler": "ddpm"}])
def test_a_loaded_generator_makes_identical_updates(
    generator: WeightGenerator, saved: Path, digits: Task, settings: dict
) -> None:
    loaded = WeightGenerator.load(saved)
    before = updated(generator, digits, **settings)
    assert torch.equal(updated(loaded, digits, **settings), before)
    assert before.isfinite().all()
    assert loaded.origin == generator.origin
    assert (loaded.metric, loaded.best_metric) == ("loss", generator.best_metric)
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_the_folder_holds_no_pickle(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == FILES
    for path in saved.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))  # pickle's and torch.save's first bytes
        if path.suffix == ".safetensors":
            length = int.from_bytes(content[:8], "little")
            assert json.loads(content[8 : 8 + length])
        else:
            content.decode()


def test_saving_twice_gives_the_same_bytes(generator: WeightGenerator, saved: Path, tmp_path: Path) -> None:
    generator.save(tmp_path / "again", training=TRAINING, card=model_card(generator, TRAINING))
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes(), name


def test_parts_are_a_way_there_and_back(generator: WeightGenerator, digits: Task) -> None:
    """What crosses the wire to training workers: json and tensors."""
    fields, tensors = generator.to_parts()
    again = WeightGenerator.from_parts(json.loads(json.dumps(fields)), tensors)
    again.model.load_state_dict(generator.model.state_dict())
    assert torch.equal(updated(again, digits), updated(generator, digits))


@pytest.mark.parametrize("stretch", [None, 1.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_any_type_are_updated_as_float32_ones_are(
    generator: WeightGenerator, digits: Task, dtype: torch.dtype, stretch: float | None
) -> None:
    asked = torch.tensor([0.1, 2.0])
    made = replace(generator, calibration=Calibration(asked, asked, stretch) if stretch else None)
    theta = digits.init([seeded(5, k) for k in range(3)]).to(dtype)
    metric = torch.full((3,), 2.3, dtype=dtype)
    out = made.update(theta, metric, 0.5, rng=seeded(1))
    assert out.dtype == dtype
    expected = made.update(theta.float(), metric.float(), 0.5, rng=seeded(1))
    # float64 networks plus float32 updates: sums are not rounded to float32
    torch.testing.assert_close(out, expected.to(dtype), rtol=1e-6, atol=1e-6)


def test_an_untrained_generator_returns_the_start_networks(untrained: WeightGenerator, digits: Task) -> None:
    theta = digits.init([seeded(5, k) for k in range(3)])
    assert torch.equal(updated(untrained, digits), theta)


def test_the_initialisation_is_a_function_of_the_seed(untrained: WeightGenerator) -> None:
    def parameters(seed: int) -> Tensor:
        made = WeightGenerator.untrained(
            untrained.origin, untrained.coordinates, untrained.scaling, untrained.model.config, seed
        )
        return torch.cat([p.detach().flatten() for p in made.model.parameters()])

    state = torch.get_rng_state()
    assert torch.equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1), parameters(2))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left as it was


def test_the_best_metric_is_the_largest_where_large_is_good(generator: WeightGenerator) -> None:
    low, high = generator.scaling.metric_range
    assert low < high
    assert generator.best_metric == low
    origin = type(generator.origin)(**vars(generator.origin) | {"objective": "max"})
    other = WeightGenerator(origin, generator.coordinates, generator.scaling, generator.model)
    assert other.best_metric == high


def test_an_update_depends_on_metric_prompt_and_noise(generator: WeightGenerator, digits: Task) -> None:
    theta = digits.init([seeded(5)])
    base = {"metric": torch.tensor([2.3]), "prompt": torch.tensor([0.5])}

    def made(seed: int = 0, **changed: Tensor) -> Tensor:
        return generator.update(theta, **(base | changed), rng=seeded(seed), steps=2)

    assert torch.equal(made(), made())
    assert not torch.equal(made(), made(prompt=torch.tensor([1.5])))
    assert not torch.equal(made(), made(metric=torch.tensor([1.0])))
    assert not torch.equal(made(), made(seed=1))


def test_a_prompt_may_be_one_number_for_all(generator: WeightGenerator, digits: Task) -> None:
    theta, metric = digits.init([seeded(0, k) for k in range(3)]), torch.full((3,), 2.3)
    one = generator.update(theta, metric, 0.5, rng=seeded(1))
    assert torch.equal(one, generator.update(theta, metric, torch.full((3,), 0.5), rng=seeded(1)))


def test_a_single_network_without_its_axis_is_refused(
    generator: WeightGenerator, digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of the tests
    theta = digits.init([seeded(0)]).squeeze(0)
    with pytest.raises(ValueError, match=r"expected \(K, 1210\) and \(K,\), a single network as theta"):
        generator.update(theta, torch.full((1,), 2.3), 0.5, rng=seeded(1))


def test_unknown_samplers_are_refused(
    generator: WeightGenerator, digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of the tests
    with pytest.raises(ValueError, match="unknown sampler 'euler'; expected one of ddim"):
        updated(generator, digits, sampler="euler")
    with pytest.raises(ValueError, match="sampling steps: got 0"):
        updated(generator, digits, steps=0)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def empty(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"")


def missing(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | changes))

    return change


def no_field(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        del fields[name]
        (folder / "config.json").write_text(json.dumps(fields))

    return change


def no_tensor(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors.popitem()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


DAMAGE = {
    "missing config": missing("config.json"),
    "missing model": missing("model.safetensors"),
    "missing normalization": missing("normalization.safetensors"),
    "cut config": cut("config.json"),
    "cut model": cut("model.safetensors"),
    "cut normalization": cut("normalization.safetensors"),
    "empty config": empty("config.json"),
    "empty model": empty("model.safetensors"),
    "a list": a_list,
    "another version": config(format_version=99),
    "another size": config(model={"width": 32, "depth": 1, "heads": 2, "mlp_ratio": 4}),
    "an unknown size": config(model={"breadth": 32}),
    "no version": no_field("format_version"),
    "no spec": no_field("spec"),
    "no origin": no_field("origin"),
    "no tensor": no_tensor,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_one_clear_line(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
        WeightGenerator.load(folder)
    assert "\n" not in str(error.value)
    assert "train" in str(error.value)  # it says what to do


def test_another_version_says_which(folder: Path) -> None:
    config(format_version=99)(folder)
    with pytest.raises(ValueError, match="format version 99, this thetaforge reads 1"):
        WeightGenerator.load(folder)


def test_the_card_says_what_it_is_and_its_code_runs(
    generator: WeightGenerator, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (saved / "README.md").read_text()
    for fact in ("digits-mlp-v0", "1,210 parameters", "validation_loss", "13 runs", "ids from 13", "7 steps"):
        assert fact in card, fact
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(saved)
    names: dict = {}
    exec(code, names)
    assert names["updated"].shape == (4, 1210)
    assert set(names["state_dict"]) == set(generator.coordinates.spec.names)
