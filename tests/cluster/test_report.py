"""`theta report` and result.json where something is infinite or no number at all."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ckpt_factory.files import write_tensors
from ckpt_factory.zoo import Zoo, sha256
from cluster.evaluate import ARRAYS
from cluster.report import ReportConfig, report
from cluster.result import write_result
from cluster.train import prepare
from cluster.train_config import GeneratorConfig
from generator.artefact import MODEL


def strict(path: Path) -> Any:
    """As programs read JSON that know no NaN and no Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_not_finite_is_null_wherever_it_stands(tmp_path: Path) -> None:
    write_result(tmp_path, {"a": math.inf, "b": (1.0, -math.inf), "c": [{"d": (math.nan, 2)}], "e": tmp_path})
    found = strict(tmp_path / "result.json")
    assert found == {"a": None, "b": [1.0, None], "c": [{"d": [None, 2]}], "e": str(tmp_path)}


def test_arrays_that_share_memory_are_written(tmp_path: Path) -> None:
    """As all arrays of a single network and seed do with the first prompt's."""
    achieved = torch.rand(1, 1, 3)
    arrays = {"achieved": achieved, "one_update": achieved[:, :, 0], "turned": achieved.mT}
    write_tensors(tmp_path / ARRAYS, arrays)
    torch.testing.assert_close(safetensors.torch.load_file(tmp_path / ARRAYS), arrays, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("steps", "words"), [([3.0, math.inf, math.inf], "more than 60"), ([2.0, 2.5, math.inf], "2.5 of 60")]
)
def test_an_evaluation_with_a_broken_network_is_reported(
    digits_zoo: Zoo, tmp_path: Path, steps: list[float], words: str
) -> None:
    generator, evaluation = tmp_path / "generator", tmp_path / "evaluation"
    made = prepare(GeneratorConfig(zoo=digits_zoo.path, held_out=0.25), digits_zoo)
    made.save(generator, training={}, card="")
    evaluation.mkdir()
    reached = torch.tensor([steps])
    safetensors.torch.save_file({"sgd_steps": reached}, evaluation / ARRAYS)
    numbers = {
        "prompt_alignment": -math.inf,
        "sgd_equivalent_steps": float(reached.median()),
        "sgd_total_steps": 60,
        "arrays": sha256(evaluation / ARRAYS),
        "evaluated": {"zoo": made.origin.zoo_sha256, "model": sha256(generator / MODEL)},
    }
    write_result(evaluation, numbers)
    asked = ReportConfig(
        zoo=digits_zoo.path, generator=generator, evaluation=evaluation, out=tmp_path / "out"
    )
    assert report(asked)["prompt_alignment"] is None
    lacking = dataclasses.replace(asked, evaluation=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no evaluation in .* \(there is no such folder\); run `theta eval"):
        report(lacking)
    lacking.evaluation.mkdir()
    with pytest.raises(ValueError, match=r"\(it has no result.json and no evaluation.safetensors\); run"):
        report(lacking)
    with pytest.raises(ValueError, match=r"no film in .* \(it has no result.json and no policies.gif\); run"):
        report(dataclasses.replace(asked, watch=lacking.evaluation))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "have no prompt alignment" in page
    assert f"one update equals <b>{words} SGD steps</b>" in page
    write_result(evaluation, {name: value for name, value in numbers.items() if name != "prompt_alignment"})
    with pytest.raises(ValueError, match=r"no evaluation in .*result.json is not one of theta evaluate"):
        report(asked)
