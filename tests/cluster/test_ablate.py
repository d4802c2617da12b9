"""`theta ablate` and `theta bench generator`: trainings side by side on a real cluster, none done twice."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ckpt_factory import Task
from ckpt_factory.zoo import Zoo
from cluster.bench import generator as generator_bench
from cluster.bench.generator import OURS, PUBLISHED, changes, recipes
from cluster.cli import run
from cluster.fitted import FITTED
from cluster.sweeps import contest
from cluster.sweeps.ablate import AblateConfig, ablate, metric_of, smoke
from cluster.sweeps.contest import RESULT, STATE, train_alone
from cluster.sweeps.jury import Jury
from cluster.train_config import GeneratorConfig
from generator.artefact import MODEL, NORMALIZATION, WeightGenerator
from generator.comparison.ablation import CHANGES, DEFAULT, VARIANTS, Result, _said, between
from generator.evaluation.evaluate import finished_runs, prompt_alignment, prompt_grid
from generator.gpt.recipe import published_training
from generator.model.dit import DiTConfig
from generator.training.train import TrainConfig

from .conftest import mirror_coordinates

TINY = TrainConfig(
    model=DiTConfig(width=16, depth=1, heads=2),
    steps=10**9,
    batch_size=16,
    warmup_steps=2,
    precision="float32",
    checkpoint_every=10,
)


def config(zoo: Zoo, out: Path, **changes: Any) -> AblateConfig:
    small: dict[str, Any] = {
        "held_out": 0.25,
        "cpu_seconds": 0.3,
        "seeds": 2,
        "num_networks": 3,
        "num_prompts": 3,
    }
    small |= {"sampling_steps": 2, "only": ("prediction-v",), "training": TINY}
    return AblateConfig(zoo=zoo.path, out=out, **small | changes)


def alone(zoo: Zoo, out: Path) -> GeneratorConfig:
    base = config(zoo, out).base()
    return replace(base, training=replace(base.training, steps=35, cpu_budget_s=None))


def flat(config: object, prefix: str = "") -> dict[str, object]:
    """By name with dots, every value of a config."""
    found: dict[str, object] = {}
    for name, value in vars(config).items():
        nested = hasattr(value, "__dataclass_fields__")
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def differing(a: object, b: object) -> set[str]:
    ours, theirs = flat(a), flat(b)
    return {name for name in ours if ours[name] != theirs[name]}


def test_every_variant_changes_what_it_says_and_no_two_are_the_same() -> None:
    default = AblateConfig().variants()
    base = default.pop(DEFAULT)
    assert base == AblateConfig().base()
    for variant in VARIANTS[1:]:
        assert differing(base, default[variant.name]) == set(variant.changes)
        assert len(variant.changes) == 1 or variant.name in ("flow-matching", "chunks-none", "guidance")
    assert len({str(asdict(each)) for each in default.values()}) == len(VARIANTS) - 1
    assert len({variant.about for variant in VARIANTS}) == len(VARIANTS)


@pytest.fixture(scope="module")
def both() -> tuple[GeneratorConfig, GeneratorConfig]:
    return recipes(Path("zoo"), 60.0, (5, 50))


def test_all_changes_lead_from_one_recipe_to_the_other(both: tuple[GeneratorConfig, GeneratorConfig]) -> None:
    ours, published = both
    assert between(ours, published, ()) == _said(ours)
    assert between(ours, published, CHANGES) == _said(published)
    assert ours.training.cpu_budget_s == published.training.cpu_budget_s == 60
    assert (ours.sampling_steps, published.sampling_steps) == (5, 50)


def test_each_change_is_made_alone_in_both_directions(both: tuple[GeneratorConfig, GeneratorConfig]) -> None:
    table = changes(*both)
    assert len(table) == 2 + 2 * len(CHANGES)
    model = "training.model"
    own = {
        "tokens": {f"{model}.tokens", f"{model}.chunk"},
        "conditioning": {f"{model}.condition", f"{model}.tokens"},
    }
    for base, word in ((OURS, "minus"), (PUBLISHED, "plus")):
        for change, names in CHANGES.items():
            moved = differing(table[base], table[f"{base} {word} {change}"])
            assert moved, (base, change)
            assert moved <= own.get(change, set(names)), (base, change)
    kinds = {
        name: (config.training.model.tokens, config.training.model.condition)
        for name, config in table.items()
    }
    assert kinds[f"{OURS} minus tokens"] == ("chunks", "adaln")
    assert kinds[f"{OURS} minus conditioning"] == ("units", "token")
    assert kinds[f"{PUBLISHED} plus tokens"] == ("units", "token")
    assert kinds[f"{PUBLISHED} plus conditioning"] == ("chunks", "adaln")
    assert kinds[PUBLISHED] == kinds[f"{PUBLISHED} plus pairs"] == ("gpt", "token")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ("nothing",)}, "no variant nothing; expected some of default"),
        ({"seeds": 0}, "seeds is 0; expected at least 1"),
        ({"cpu_seconds": 0.0}, "cpu_seconds is 0.0; expected a positive number"),
        ({"num_workers": 2}, "num_workers is 2; variants are trained by one CPU each"),
        ({"moments": 64}, "moments is 64; variants"),
        ({"training": TrainConfig(cpu_budget_s=3.0)}, "expected --cpu-seconds alone"),
        ({"training": TrainConfig(time_budget_s=3.0)}, "expected --cpu-seconds alone"),
    ],
)
def test_impossible_ablations_say_what_is_expected(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AblateConfig(**changes)


def test_a_variant_that_does_not_go_with_the_base_is_named() -> None:
    gpt = AblateConfig(training=TrainConfig(model=DiTConfig(tokens="gpt")))
    with pytest.raises(ValueError, match=r"variant dropout is impossible here: .* name others by --only"):
        gpt.variants()
    assert list(replace(gpt, only=("path-flow",)).variants()) == ["default", "path-flow"]


def test_help_names_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["ablate", "--help"])
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").replace(".", " ").split()
    assert {variant.name for variant in VARIANTS} <= {*words, "default"}


def test_help_says_how_many_trainings_a_comparison_of_generators_takes(
    both: tuple[GeneratorConfig, GeneratorConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(["bench", "generator", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    with_the_long_one = len(changes(*both)) + 1
    assert f"at equal CPU time: {with_the_long_one} trainings a seed" in words


def test_an_interrupted_training_goes_on_from_its_last_state(
    digits_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same model as one that was not interrupted, though this machine fits other coordinates."""
    whole, broken = (alone(digits_zoo, tmp_path / name) for name in ("whole", "broken"))
    train_alone(whole)
    saves = []

    def save(*given) -> None:
        saves.append(given)
        if len(saves) == 3:
            raise KeyboardInterrupt
        torch.serialization.save(*given)

    monkeypatch.setattr(contest.torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train_alone(broken)
    monkeypatch.undo()
    assert torch.load(broken.out / STATE, weights_only=True)["step"] == 20
    mirror_coordinates(monkeypatch)
    train_alone(broken)
    for name in (MODEL, NORMALIZATION):
        parts = [safetensors.torch.load_file(each.out / name) for each in (whole, broken)]
        torch.testing.assert_close(*parts, rtol=0, atol=0)
    trained = json.loads((broken.out / "config.json").read_text())["training"]
    assert (trained["steps"], trained["pairs"]) == (35, 35 * 16)
    assert not (broken.out / STATE).exists()
    assert not (broken.out / FITTED).exists()
    saved = (broken.out / MODEL).stat().st_mtime_ns
    for name in (STATE, FITTED):  # as if it had been killed when it had just saved its generator
        (broken.out / name).touch()
    train_alone(broken)
    assert not [name for name in (STATE, FITTED) if (broken.out / name).exists()]
    assert (broken.out / MODEL).stat().st_mtime_ns == saved


def test_a_training_alone_learns_from_all_metrics_and_is_judged(digits_zoo: Zoo, tmp_path: Path) -> None:
    base = alone(digits_zoo, tmp_path / "both")
    asked = replace(base, metrics=("loss", "error"), training=replace(base.training, steps=3))
    train_alone(asked)
    assert WeightGenerator.load(asked.out).metrics == ("loss", "error")
    found = Jury.of(asked, digits_zoo, num_networks=2, num_prompts=2).judged(asked.out)
    assert set(found["one_update"]) == {"test_loss", "test_error"}


def test_a_jury_judges_all_by_the_same_initialisations_and_prompts(digits_zoo: Zoo, tmp_path: Path) -> None:
    base = alone(digits_zoo, tmp_path / "one")
    jury = Jury.of(base, digits_zoo, num_networks=3, num_prompts=4)
    assert (jury.first, jury.num_networks) == (18, 3)
    train_alone(base)
    found, again = (jury.judged(base.out) for _ in range(2))
    assert found["alignment"] == again["alignment"]
    assert found["evaluations"] == 2
    assert found["networks_per_cpu_s"] > 0
    assert 0 < found["one_update"]["test_error"] <= 1
    assert jury.judged(base.out, seed=1)["alignment"] != found["alignment"]


def test_what_is_chosen_by_is_judged_on_the_last_held_out_runs_and_the_validation_split(
    digits: Task, digits_zoo: Zoo, tmp_path: Path
) -> None:
    base = alone(digits_zoo, tmp_path / "one")
    train_alone(base)
    jury = Jury.of(base, digits_zoo, num_networks=3, num_prompts=4, split="validation")
    found = jury.judged(base.out)
    starts = finished_runs(digits_zoo, 21, 3).theta[:, 0]  # of 24 runs, the last six are held out
    grid = prompt_grid(WeightGenerator.load(base.out), digits, starts, seed=0, num_prompts=4, best=jury.best)
    expected = prompt_alignment(grid["prompts"], grid["validation_loss"])
    assert found["alignment"] == pytest.approx(float(expected.mean()))
    assert set(found["one_update"]) == {"validation_loss", "validation_error"}
    assert metric_of([result_of(found)]) == "validation_error"


def result_of(found: dict[str, Any]) -> Result:
    return Result(variant="default", seed=0, cpu_s=1.0, steps=1, pairs=1, parameters=1, **found)


@pytest.mark.parametrize("first", [0, 18])
def test_the_last_runs_are_those_at_the_end_in_their_order(digits_zoo: Zoo, first: int) -> None:
    """Over shards of 8 runs, and as many as there are."""
    every = finished_runs(digits_zoo, first, 24)
    for most in (1, 5, 24):
        last = finished_runs(digits_zoo, first, most, from_end=True)
        assert torch.equal(last.run_ids, every.run_ids[-most:])
        assert torch.equal(last.theta, every.theta[-most:])
        assert all(torch.equal(values, every.metrics[name][-most:]) for name, values in last.metrics.items())


@pytest.mark.ray
def test_an_ablation_ends_with_a_table_and_a_picture_and_is_not_repeated(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config(digits_zoo, tmp_path / "ablation")
    result = ablate(asked)
    shown = capsys.readouterr().out
    assert "prediction-v" in shown
    assert "gain" in shown
    assert (result["trainings"], result["trainings_failed"]) == (4, 0)
    assert {(row["variant"], row["seed"]) for row in result["judged"]} == {
        (name, seed) for name in ("default", "prediction-v") for seed in (0, 1)
    }
    for row in result["judged"]:
        assert 0.3 <= row["cpu_s"] < 1.0  # ten steps at least, and it looks at the clock every ten
        assert row["pairs"] == 16 * row["steps"]
        assert 0 < row["one_update_validation_error"] <= 1
    for name in ("default-seed0", "prediction-v-seed1"):
        made = WeightGenerator.load(asked.out / "trainings" / name)
        assert made.model.config.prediction == ("clean" if "default" in name else "v")
    with (asked.out / "ablation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (asked.out / "ablation.png").read_bytes()[:4] == b"\x89PNG"

    done = {path: path.stat().st_mtime_ns for path in asked.out.glob(f"trainings/*/{RESULT}")}
    more = ablate(replace(asked, seeds=3, only=("prediction-v", "min-snr")))
    assert more["trainings"] == 9
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not done again"
    assert [row for row in more["judged"] if row["variant"] != "min-snr" and row["seed"] < 2] == result[
        "judged"
    ]
    with pytest.raises(ValueError, match=r"holds another comparison, with cpu_seconds 0.3 \(now 0.4\)"):
        ablate(replace(asked, cpu_seconds=0.4))


@pytest.mark.ray
@pytest.mark.slow
def test_every_variant_can_be_trained(ray_cluster: int, digits_zoo: Zoo, tmp_path: Path) -> None:
    asked = replace(smoke(), zoo=digits_zoo.path, out=tmp_path / "all", held_out=0.25, cpu_seconds=0.5)
    result = ablate(asked)
    assert result["trainings_failed"] == 0
    assert {row["variant"] for row in result["judged"]} == {variant.name for variant in VARIANTS}


def small_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes of both with tiny models, so that a step takes milliseconds."""
    training = replace(published_training(time_budget_s=1.0, batch_size=16), precision="float32")
    published = replace(
        generator_bench.gpt_digits(),
        held_out=0.25,
        training=replace(training, model=DiTConfig(tokens="gpt", width=32, depth=1, heads=2)),
    )
    ours = GeneratorConfig(held_out=0.25, training=TINY)
    monkeypatch.setattr(generator_bench, "digits", lambda: ours)
    monkeypatch.setattr(generator_bench, "gpt_digits", lambda: published)


@pytest.mark.ray
@pytest.mark.parametrize(
    "table", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["both", "all changes"]
)
def test_the_bench_holds_ours_against_the_published_one(
    table: bool,
    ray_cluster: int,
    digits_zoo: Zoo,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_recipes(monkeypatch)
    flags = "--cpu-seconds 0.3 --published-cpu-seconds 0.6 --published-steps 4 --our-steps 2 --table-steps 3 "
    flags += (
        f"--num-networks 2 --num-prompts 2 --num-seeds 1 --zoo {digits_zoo.path} --out {tmp_path / 'bench'}"
    )
    assert run(["bench", "generator", *flags.split(), *(() if table else ("--no-changes",))]) == 0
    shown = capsys.readouterr().out
    assert "our generator against the published one" in shown
    result = json.loads((tmp_path / "bench" / "result.json").read_text())
    rows = {row["variant"]: row for row in result["judged"]}
    assert (rows["ours"]["evaluations"], rows["published at length"]["evaluations"]) == (2, 4)
    assert rows["published at length"]["cpu_s"] >= 0.6
    assert result["ours: evaluations"] == 2
    if table:
        assert set(rows) == {*changes(*recipes(digits_zoo.path, 1.0, (2, 3))), "published at length"}
        assert (
            len(result["ours minus a change"]) == len(result["published plus a change"]) == 1 + len(CHANGES)
        )
        assert {rows["ours minus schedule"]["evaluations"], rows["published"]["evaluations"]} == {3}
        assert (tmp_path / "bench" / "changes.png").read_bytes()[:4] == b"\x89PNG"
    else:
        assert set(rows) == {"ours", "published at length"}
