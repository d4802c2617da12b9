"""Released files: loaded strictly, refused in words, and the same model afterwards; here of small models."""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan
from ckpt_factory.header import Imported, ZooHeader
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import HEADER, Zoo, sha256
from generator.artefact import WeightGenerator
from generator.card import released_card, save_changed
from generator.gpt import PRESETS, Gpt
from generator.gpt.released import (
    RELEASES,
    fitting,
    generator_of_released,
    network_of,
    origin_on,
    read_released,
    state_of,
)
from generator.origin import Origin
from generator.sampling.linear_schedule import respaced
from generator.sampling.samplers import Sampling

from ..conftest import randomise


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The releases are up to 2.6 GB; these have their tokens and are narrow."""
    for name in RELEASES:
        small = replace(PRESETS[name], width=8, depth=1, heads=2)
        monkeypatch.setitem(PRESETS, name, small)


def small_gpt(name: str, seed: int = 0) -> Gpt:
    model = Gpt(PRESETS[name])
    randomise(model, seed=seed)
    return model


def write(path: Path, name: str, change: Callable[[dict[str, Any]], Any] = lambda content: content) -> Gpt:
    """A file as the published training writes it, with optimizer; returns its averaged model."""
    raw, averaged = small_gpt(name, seed=1), small_gpt(name, seed=2)
    optimizer = torch.optim.AdamW(raw.parameters())
    content = {"G": raw.state_dict(), "optim": optimizer.state_dict(), "G_ema": averaged.state_dict()}
    torch.save(change(content), path)
    return averaged


@pytest.mark.parametrize("name", RELEASES)
def test_an_imported_generator_says_what_the_released_model_says(name: str, tmp_path: Path) -> None:
    """Through file, artefact and folder: theta* of the published units, of one step from noise."""
    averaged = write(tmp_path / "file.pt", name)
    made = generator_of_released(tmp_path / "file.pt", name)
    made.save(tmp_path / "out", training={}, card=released_card(made, name, "ema"))
    loaded, release = WeightGenerator.load(tmp_path / "out"), RELEASES[name]
    theta = 0.1 * torch.randn(2, PRESETS[name].D, generator=seeded(0))
    metric, prompt = torch.tensor([0.9, 0.8]), torch.tensor([0.5, 0.4])
    updated = loaded.update(theta, metric, prompt, rng=seeded(1), steps=1)

    noise = loaded.coordinates.decode_update(torch.randn(2, made.coordinates.Z, generator=seeded(1)))
    start, step = release.coefficient * theta, torch.full((2,), 999.0)
    noised = noise + torch.cos(torch.pi / 2 * respaced(1)[0]).float() * start
    factor = 100 if name.endswith("error") else 1
    expected = averaged(noised, step, start, factor * metric, factor * prompt) / release.coefficient
    # float32 of values up to 5, and errors times 100 in sines of up to 1.5 million radians, exact for both
    torch.testing.assert_close(updated, expected, rtol=1e-3, atol=1e-3)
    assert loaded.origin.prompted == release.prompted
    assert loaded.sampling.steps == 1000


def test_the_networks_are_those_of_the_tasks() -> None:
    for name in RELEASES:
        spec, axes = network_of(name)
        assert spec.sizes == PRESETS[name].sizes
        assert set(axes) == set(spec.names)


def test_raw_weights_are_the_other_ones(tmp_path: Path) -> None:
    write(tmp_path / "file.pt", "cartpole")
    raw, averaged = (
        generator_of_released(tmp_path / "file.pt", "cartpole", which).model.state_dict()
        for which in ("raw", "ema")
    )
    for model, seed in ((raw, 1), (averaged, 2)):
        expected = small_gpt("cartpole", seed=seed).state_dict()
        assert all(torch.equal(model[f"gpt.{key}"], value) for key, value in expected.items())


def test_a_bare_state_dict_is_taken_as_raw_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    write(path, "cartpole", lambda content: content["G"])
    assert len(state_of(path, read_released(path), "raw")) == len(small_gpt("cartpole").state_dict())
    with pytest.raises(ValueError, match="not said to be averaged; take it with --weights raw"):
        generator_of_released(path, "cartpole")


def test_shapes_say_which_release_a_file_is(tmp_path: Path) -> None:
    for name, fits in (("cartpole", ["cartpole"]), ("mnist_error", ["mnist_loss", "mnist_error"])):
        write(tmp_path / "file.pt", name)
        state = state_of(tmp_path / "file.pt", read_released(tmp_path / "file.pt"), "ema")
        assert fitting(state) == fits


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


def poisoned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["decoder.ln_f.bias"][0] = torch.nan
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {"G": c["G"], "epoch": 3}, "has no 'G_ema' of tensors: it holds 'G', 'epoch'; expected"),
        (lambda c: c | {"G_ema": 3}, "has no 'G_ema' of tensors"),
        (lambda c: {}, "it holds nothing"),
        (lambda c: [1, 2], "holds a list; expected a dict with 'G_ema' and 'G'"),
        (
            lambda c: c | {"G_ema": renamed(c["G_ema"])},
            r"47 tensors, not the 47 of cartpole; it fits no released model: 47 missing \(decoder.pos_emb, .*"
            r"47 unknown \(module.decoder.pos_emb, .*, \.\.\.\)",
        ),
        (
            lambda c: c | {"G_ema": c["G_ema"] | {"decoder.pos_emb": torch.zeros(1, 26, 8)}},
            r": 1 other shapes \(decoder.pos_emb \(1, 26, 8\) instead of \(1, 18, 8\)\)",
        ),
        (lambda c: c | {"G_ema": poisoned(c["G_ema"])}, "decoder.ln_f.bias holds NaN or infinity"),
    ],
)
def test_what_differs_is_said(change: Callable, words: str, tmp_path: Path) -> None:
    write(tmp_path / "file.pt", "cartpole", change)
    with pytest.raises(ValueError, match=words):
        generator_of_released(tmp_path / "file.pt", "cartpole")


def test_another_release_is_recognised(tmp_path: Path) -> None:
    write(tmp_path / "file.pt", "cifar10_loss")
    with pytest.raises(ValueError, match="of mnist_loss; it fits cifar10_loss and cifar10_error: "):
        generator_of_released(tmp_path / "file.pt", "mnist_loss")


class Code:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("ran"),))


def test_files_with_code_are_refused_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"G_ema": Code()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps({"G_ema": Code()}, protocol=2))
    Path("cut.pt").write_bytes(Path("zip.pt").read_bytes()[:-30])
    Path("text.pt").write_text("no checkpoint")
    Path("line.pt").write_bytes(b"text\n")  # the unpickler takes its first letter for an opcode
    Path("empty.pt").touch()
    torch.save({"G_ema": torch.nn.Linear(2, 2)}, "module.pt")
    Path("newer.pt").write_bytes(pickle.dumps({"G_ema": Code()}, protocol=4))  # torch warns of its protocol
    faults = {
        "zip": r"holds more than tensors \(getattr\)",
        "plain": r"holds more than tensors \(getattr\)",
        "module": r"holds more than tensors \(torch.nn.modules.linear.Linear\)",
        "newer": "holds something other than tensors and plain values, or is no checkpoint",
        "text": "holds something other than tensors and plain values, or is no checkpoint",
        "line": "cannot be read",
        "cut": "cannot be read",
        "empty": "cannot be read",
    }
    for name, fault in faults.items():
        refused = pytest.raises(ValueError, match=f"^{name}.pt is no released file: it {fault}")
        with warnings.catch_warnings(action="error"), refused as caught:
            read_released(Path(f"{name}.pt"))
        line = str(caught.value)
        assert line.isprintable(), "one line without escapes"
        assert "nothing in a file is executed; expected the file as released" in line
        assert "weights_only" not in line
    assert not Path("ran").exists()
    with pytest.raises(ValueError, match=r"no file nowhere.pt"):
        read_released(Path("nowhere.pt"))


def header_of(task: str, *, runs: int, plan: RunPlan | Imported, **more: Any) -> ZooHeader:
    spec, _ = network_of("mnist_loss")
    metrics = ("validation_loss", "validation_error", "test_loss", "test_error")
    names = {
        "task": task,
        "spec": spec,
        "metrics": metrics,
        "prompted": "validation_loss",
        "objective": "min",
    }
    return ZooHeader(**names | {"plan": plan, "num_runs": runs, "stack_size": 8, "inputs": "pixels"} | more)


def test_the_origin_on_a_zoo_says_which_runs_are_held_out(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "zoo", header_of("mnist-mlp-v0", runs=40, plan=RunPlan()))
    origin = origin_on(zoo, "mnist_error", 0.25)
    assert (origin.zoo_sha256, origin.num_training_runs) == (sha256(tmp_path / "zoo" / HEADER), 30)
    assert (origin.prompted, origin.released, origin.inputs) == ("validation_error", "mnist_error", "pixels")
    assert Origin.from_fields(origin.to_fields()) == origin
    assert origin_on(zoo, "mnist_loss").num_training_runs == 36
    assert "whether the authors of mnist_error did is not known" in origin.held_out_means
    assert replace(origin, released="").held_out_means == "never trained on"
    assert "released" not in replace(origin, released="").to_fields()


def test_of_the_published_set_the_runs_are_held_out_that_its_authors_held_out(tmp_path: Path) -> None:
    plans = {"own": RunPlan(), "set": Imported(source="set", num_checkpoints=2, measured=True)}
    zoos = {
        name: Zoo.create(tmp_path / name, header_of("mnist-mlp-v0", runs=10_728, plan=plan))
        for name, plan in plans.items()
    }
    assert origin_on(zoos["set"], "mnist_loss").num_training_runs == 10_228
    assert origin_on(zoos["set"], "mnist_loss", 0.5).num_training_runs == 5364
    assert origin_on(zoos["own"], "mnist_loss").num_training_runs == 9655


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "mnist_loss",
            {"task": "digits-mlp-v0"},
            "'digits-mlp-v0', mnist_loss makes those of 'mnist-mlp-v0'",
        ),
        (
            "cifar10_loss",
            {},
            "holds networks of task 'mnist-mlp-v0', cifar10_loss makes those of 'cifar-cnn-v0'",
        ),
        ("cartpole", {}, r"no task here can judge cartpole \(isaacgym-cartpole\); leave --zoo out"),
        (
            "mnist_error",
            {"metrics": ("validation_loss",)},
            "prompted with validation_error, zoo .* validation_loss",
        ),
        ("mnist_loss", {"num_runs": 1}, "has 1 runs, too few to hold any out"),
    ],
)
def test_a_zoo_that_cannot_judge_a_release_is_refused(
    name: Any, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    header = replace(
        header_of("mnist-mlp-v0", runs=40, plan=RunPlan(group_size=1)), **{"stack_size": 1} | change
    )
    with pytest.raises(ValueError, match=words):
        origin_on(Zoo.create(tmp_path / "zoo", header), name)


def test_a_released_generator_that_was_changed_keeps_its_card(tmp_path: Path) -> None:
    """As `theta calibrate` and `theta moments` save it."""
    write(tmp_path / "file.pt", "mnist_loss")
    made = generator_of_released(tmp_path / "file.pt", "mnist_loss")
    card = released_card(made, "mnist_loss", "ema", "runs/zoo")
    training = {"model": "mnist_loss", "weights": "ema", "zoo": "runs/zoo"}
    made.save(tmp_path / "own", training=training, card=card)
    save_changed(
        replace(made, sampling=Sampling(steps=5, sampler="ddim")), tmp_path / "own", tmp_path / "changed"
    )
    changed = (tmp_path / "changed" / "README.md").read_text()
    assert changed == card.replace("published, 1000 steps", "ddim, 5 steps")
    assert "judged on | zoo runs/zoo, runs with ids from 10228: nothing here was trained on them" in changed
