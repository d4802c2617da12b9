"""Ablations: configs changed by name, variants, and means over seeds."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from generator.comparison.ablation import DEFAULT, VARIANTS, Result, at, changed, chosen, summaries
from generator.model.dit import DiTConfig
from generator.report.ablation_plots import ablation_picture
from generator.training.train import TrainConfig


def test_a_config_is_changed_where_it_says_and_nowhere_else() -> None:
    config = TrainConfig()
    made = changed(config, {"model.path": "flow", "model.width": 64, "lr": 0.5})
    assert made == replace(config, lr=0.5, model=DiTConfig(path="flow", width=64))
    assert (at(made, "model.path"), at(made, "lr")) == ("flow", 0.5)
    with pytest.raises(KeyError, match="TrainConfig has no learning_rate"):
        changed(config, {"learning_rate": 1})
    both = changed(config, {"model.tokens": "chunks", "model.symmetry": "none"})
    assert both.model.symmetry == "none"
    with pytest.raises(ValueError, match="symmetry is 'none' with tokens 'units'"):
        changed(config, {"model.symmetry": "none"})


def test_variants_are_chosen_by_name() -> None:
    assert chosen(()) == VARIANTS
    assert [each.name for each in chosen(("min-snr",))] == [DEFAULT, "min-snr"]
    with pytest.raises(ValueError, match="no variant nothing; expected some of default, prediction-v"):
        chosen(("min-snr", "nothing"))


def judged(variant: str, seed: int, alignment: float, error: float = 0.1) -> Result:
    return Result(
        variant=variant,
        seed=seed,
        alignment=alignment,
        alignment_median=alignment,
        one_update={"test_loss": 2 * error, "test_error": error},
        cpu_s=2.0,
        steps=10,
        pairs=100 * (seed + 1),
        parameters=5,
        evaluations=10,
        networks_per_cpu_s=3.0,
    )


def test_summaries_are_means_over_seeds_and_gains_are_of_the_same_seeds() -> None:
    rows = [
        judged(DEFAULT, 0, 0.90, 0.2),
        judged(DEFAULT, 1, 0.94, 0.4),
        judged("better", 0, 0.95),
        judged("better", 1, 0.97),
        judged("better", 2, 0.99),
        judged("broken", 0, math.nan),
        judged("worse", 1, 0.5),
    ]
    found = {each.variant: each for each in summaries(rows)}
    assert list(found) == ["better", DEFAULT, "worse", "broken"]
    better = found["better"]
    assert (better.seeds, better.pairs) == (3, 200)
    assert better.alignment == pytest.approx(0.97)
    assert better.alignment_std == pytest.approx(0.02)
    assert better.gain == pytest.approx((0.05 + 0.03) / 2), "the third seed has no default"
    assert better.gain_std == pytest.approx(0.02 / 2**0.5)
    assert (found[DEFAULT].gain, found[DEFAULT].gain_std) == (0, 0)
    assert found[DEFAULT].one_update["test_error"] == pytest.approx(0.3)
    assert found["worse"].alignment_std is None
    assert found["worse"].gain == pytest.approx(-0.44)
    assert summaries(rows, compared_with="worse")[0].gain == pytest.approx(0.47)


def test_the_picture_has_a_row_for_every_variant(tmp_path: Path) -> None:
    few = [judged(DEFAULT, seed, 0.9 + 0.01 * seed) for seed in range(3)]
    many = [*few, *(judged(f"v{i}", 0, 0.5 - 10.0 * i) for i in range(8)), judged("broken", 0, math.nan)]
    sizes = []
    for rows in (few, many):
        ablation_picture(rows, "test_error", tmp_path / "made.png")
        content = (tmp_path / "made.png").read_bytes()
        assert content[:4] == b"\x89PNG"
        sizes.append(int.from_bytes(content[20:24], "big"))
    assert sizes[1] > sizes[0] + 200, "taller by nine rows"
