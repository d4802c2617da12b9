"""Other data than a zoo's networks were trained on is refused by every command that is given any."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from ckpt_factory import RunPlan, make
from ckpt_factory.zoo import Zoo
from cluster.sweeps.jury import Jury
from cluster.train import behaviour_in, prepare
from cluster.train_config import GeneratorConfig
from generator.artefact import WeightGenerator
from generator.training.train import TrainConfig
from tests.ckpt_factory.test_image_folder import encoded, pixels, write
from tests.conftest import write_zoo

from .test_cli import Refused, refused  # noqa: F401


class Made(NamedTuple):
    """A zoo of a folder of images, a generator of it, and another folder, whose images are darker."""

    zoo: Zoo
    generator: Path
    own: Path
    other: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("wrong")
    own, other = folder / "own", folder / "other"
    for images, darker in ((own, 1), (other, 2)):
        for split, num in (("train", 40), ("test", 9)):
            content = [encoded(each // darker) for each in pixels(num)]
            write(images / f"{split}.parquet", content, [i % 3 for i in range(num)])
    task = make("images-mlp-v0", data_root=own)
    plan = RunPlan(num_steps=4, batch_size=(8,), num_checkpoints=3)
    zoo = write_zoo(folder / "zoo", task, plan, num_runs=16, stack_size=8)
    config = GeneratorConfig(zoo=zoo.path, data_root=own, held_out=0.5)
    prepare(config, zoo).save(folder / "generator", training={}, card="")
    return Made(zoo, folder / "generator", own, other)


@pytest.mark.parametrize("command", ["train", "ablate", "tune", "evaluate", "audit", "calibrate", "verify"])
def test_a_zoo_is_not_used_with_other_data(
    refused: Refused,  # noqa: F811
    made: Made,
    command: str,
    tmp_path: Path,
) -> None:
    of = ["--generator", made.generator] if command in ("evaluate", "audit", "calibrate") else []
    given = ["--zoo", made.zoo.path, *of, "--data-root", made.other, "--out", tmp_path / "out"]
    line = refused(command, *given)
    assert "this data is not what the zoo was made on: its inputs are (pixels / 255 - " in line
    assert line.endswith("give that data with --data-root")
    assert not (tmp_path / "out").exists()


def test_nor_are_networks_prompted_for_other_data(
    refused: Refused,  # noqa: F811
    made: Made,
    tmp_path: Path,
) -> None:
    given = ["--generator", made.generator, "--data-root", made.other, "--out", tmp_path / "out"]
    assert "this data is not what the generator was trained on: its inputs" in refused("prompt", *given)


def test_nor_are_generators_trained_or_judged_with_other_data(made: Made) -> None:
    config = GeneratorConfig(zoo=made.zoo.path, data_root=made.own, held_out=0.5)
    jury = Jury.of(config, made.zoo, num_networks=1, num_prompts=2)
    assert jury.judged(made.generator)["evaluations"] == 10
    with pytest.raises(ValueError, match="not what the zoo was made on"):
        replace(jury, data_root=made.other).judged(made.generator)
    with pytest.raises(ValueError, match="not what the generator was trained on"):
        behaviour_in(TrainConfig(), WeightGenerator.load(made.generator), made.other)
