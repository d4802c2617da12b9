"""Sets in the published LMDB format become zoos: every number arrives, and what is broken is named."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch

from ckpt_factory import Task, make
from ckpt_factory.card import write_card, zoo_card, zoo_summary
from ckpt_factory.interchange import Run, Source, begin_import, import_unit, open_lmdb_set
from ckpt_factory.verify import merge, verify_unit
from ckpt_factory.zoo import Zoo
from tests.cluster.processes import zoo_bytes
from tests.published import supervised_run, write_run

ARCH = (1024, 16, 160, 10)  # digits-mlp-v0
D = sum(ARCH)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Seven runs of five checkpoints, two of them in a fused directory."""
    folder = tmp_path / "digits"
    for seed in (0, 1, 4, 5, 6):
        write_run(folder, {f"{seed:06d}": supervised_run(seed, size=D)}, ARCH)
    write_run(folder, {f"{seed:06d}": supervised_run(seed, size=D) for seed in (2, 3)}, ARCH)
    return folder


def imported(source: Source, out: Path, task: Task | None = None, **options: object) -> Zoo:
    zoo = begin_import(source, out, task=task, stack_size=3, **options)  # pyright: ignore[reportArgumentType]
    for unit in range(zoo.header.num_units):
        if unit not in zoo.finished_units():
            import_unit(zoo, source, task, unit)
    return zoo


def all_problems(zoo: Zoo, task: Task | None = None) -> list[str]:
    return merge(zoo, [verify_unit(zoo, task, unit, sample=9) for unit in zoo.finished_units()]).problems


def test_every_number_of_a_published_set_arrives(published: Path, digits: Task, tmp_path: Path) -> None:
    zoo = imported(open_lmdb_set(published, task=digits), tmp_path / "zoo", digits)
    assert zoo.header.metrics == ("test_error", "test_loss", "train_error", "train_loss")
    assert (zoo.header.prompted, zoo.header.num_runs) == ("test_loss", 7)
    assert zoo.read_runs()["name"].to_pylist() == [f"{seed:06d}" for seed in range(7)]
    for unit, run_ids in ((0, range(3)), (1, range(3, 6)), (2, range(6, 7))):
        rows = zoo.read_unit(unit)
        for k, seed in enumerate(run_ids):
            expected = list(supervised_run(seed, size=D).values())
            assert rows.steps[k].tolist() == [0, 2, 5, 8, 10], "epochs of 5 iterations"
            assert torch.equal(rows.theta[k], torch.tensor(np.stack([theta for theta, _ in expected])))
            for column, key, factor in (
                ("test_error", "avg_test_err", 100),
                ("train_loss", "avg_train_loss", 1),
            ):
                np.testing.assert_allclose(
                    rows.metrics[column][k] * factor, [m[key] for _, m in expected], 1e-6
                )
    assert all_problems(zoo) == []
    card = zoo_card(zoo)
    assert "conditioned on the test set (`test_loss`)" in card
    assert "the LMDB set digits" in card


def test_names_stay_out_of_the_header(published: Path, tmp_path: Path) -> None:
    zoo = imported(open_lmdb_set(published), tmp_path / "zoo")
    text = (zoo.path / "zoo.json").read_text()
    assert "000003" not in text
    assert str(tmp_path) not in text
    assert zoo.header.task == "imported"
    assert zoo.header.spec.sizes == ARCH, "flat tensors, where neither task nor published network says more"


def test_interrupted_import_resumes_to_the_same_bytes(published: Path, digits: Task, tmp_path: Path) -> None:
    whole = imported(open_lmdb_set(published, task=digits), tmp_path / "whole", digits)
    source = open_lmdb_set(published, task=digits)
    zoo = begin_import(source, tmp_path / "parts", task=digits, stack_size=3)
    import_unit(zoo, source, digits, 1)
    (zoo.checkpoints_path(0)).parent.joinpath(".tmp-part-00000.parquet-" + "0" * 32).write_bytes(b"half")
    resumed = imported(open_lmdb_set(published, task=digits), tmp_path / "parts", digits)
    assert zoo_bytes(resumed.path) == zoo_bytes(whole.path)
    assert not list(resumed.path.rglob(".tmp-*"))


def test_a_set_that_has_changed_is_not_mixed_in(published: Path, tmp_path: Path) -> None:
    imported(open_lmdb_set(published), tmp_path / "zoo")
    (published / "000006" / "DONE.txt").unlink()
    write_run(published, {"000007": supervised_run(7, size=D)}, ARCH)
    source = open_lmdb_set(published, skip_broken=True)  # again seven runs
    with pytest.raises(ValueError, match="holds another zoo, with digest"):
        begin_import(source, tmp_path / "zoo", task=None, stack_size=3)


def other_metric(set_: Path) -> None:
    rewrite(set_ / "000006", lambda c: c["000006/ep001_it00003.pt"].update(avg_test_loss=0.25))


def longer_database(set_: Path) -> None:
    with lmdb.open(str(set_ / "000006"), map_size=2**28) as environment, environment.begin(write=True) as t:
        t.put(b"more", bytes(100_000))


@pytest.mark.parametrize("change", [other_metric, longer_database])
def test_a_set_whose_runs_have_changed_is_not_mixed_in(
    change: Callable[[Path], None], published: Path, tmp_path: Path
) -> None:
    zoo = begin_import(open_lmdb_set(published), tmp_path / "zoo", task=None, stack_size=3)
    import_unit(zoo, open_lmdb_set(published), None, 0)
    change(published)
    with pytest.raises(ValueError, match="holds another zoo, with digest"):
        begin_import(open_lmdb_set(published), tmp_path / "zoo", task=None, stack_size=3)


def test_the_digest_is_of_moments_sizes_and_steps_per_epoch(tmp_path: Path) -> None:
    def digest(
        name: str, *, middle: int = 2, arch: tuple[int, ...] = (3, 4), steps_per_epoch: int | None = None
    ) -> str:
        folder = tmp_path / name
        run = supervised_run(0, size=7, moments=((0, 0), (0, middle), (1, 5)))
        write_run(folder, {"000000": run}, arch)
        return open_lmdb_set(folder, steps_per_epoch=steps_per_epoch).digest

    first = digest("a")
    assert digest("b") == first
    assert digest("c", steps_per_epoch=5) == first, "the highest iteration, said aloud"
    others = [digest("d", middle=3), digest("e", arch=(4, 3)), digest("f", steps_per_epoch=6)]
    assert len({first, *others}) == 4


def test_the_good_runs_of_a_fused_directory_are_taken(published: Path, tmp_path: Path) -> None:
    path = published / "000002_000003" / "runs.json"
    path.write_text(json.dumps({"000003": json.loads(path.read_text())["000003"]}))
    with pytest.raises(
        ValueError, match=r"1 of 7 runs .*: 000002: its runs.json has no checkpoints of run 0"
    ):
        open_lmdb_set(published)
    source = open_lmdb_set(published, skip_broken=True)
    assert list(source.skipped) == ["000002"]
    zoo = imported(source, tmp_path / "zoo")
    assert zoo.read_runs()["name"].to_pylist() == [f"{seed:06d}" for seed in (0, 1, 3, 4, 5, 6)]
    expected = [theta for theta, _ in supervised_run(3, size=D).values()]
    assert torch.equal(zoo.read_unit(0).theta[2], torch.tensor(np.stack(expected)))


def test_steps_that_no_column_holds_are_refused(published: Path) -> None:
    far = supervised_run(7, size=D, moments=((0, 0), (0, 1), (0, 2), (0, 5), (429_496_730, 5)))
    write_run(published, {"000007": far}, ARCH)
    with pytest.raises(
        ValueError, match=r"000007: its last checkpoint is of step 2147483655; expected below"
    ):
        open_lmdb_set(published)
    assert list(open_lmdb_set(published, skip_broken=True).skipped) == ["000007"]


def test_evaluation_measures_the_tasks_own_metrics(published: Path, digits: Task, tmp_path: Path) -> None:
    source = open_lmdb_set(published, task=digits)
    zoo = imported(source, tmp_path / "zoo", digits, evaluate=True, dtype="bfloat16")
    assert zoo.header.prompted == "validation_loss"
    rows = zoo.read_unit(2)
    expected = digits.metrics_of(rows.theta[0].float())
    assert set(rows.metrics) == {"validation_loss", "validation_error", "test_loss", "test_error"}
    for name, values in expected.items():
        torch.testing.assert_close(rows.metrics[name][0], values)
    assert all_problems(zoo, digits) == []
    assert verify_unit(zoo, digits, 0, sample=9).remeasured == 9
    assert "measured again by the task" in zoo_card(zoo)


def test_evenly_spread_checkpoints_with_first_and_last(published: Path, tmp_path: Path) -> None:
    long = [(0, it) for it in range(5)] + [(1, it) for it in range(1, 6)]
    write_run(published, {"000008": supervised_run(8, size=D, moments=long)}, ARCH)
    with pytest.raises(
        ValueError, match=r"1 of 8 runs .* 000008: it has 10 checkpoints, others 5 \(--num-check"
    ):
        open_lmdb_set(published)
    zoo = imported(open_lmdb_set(published, num_checkpoints=3), tmp_path / "zoo")
    assert zoo.read_unit(0).steps.tolist() == [[0, 5, 10]] * 3
    assert zoo.read_unit(2).steps.tolist() == [[0, 5, 10], [0, 4, 10]]
    with pytest.raises(ValueError, match="it has 5 checkpoints, fewer than --num-checkpoints 6"):
        open_lmdb_set(published, num_checkpoints=6)


@pytest.mark.parametrize("name", ["runs.json", "DONE.txt", "data.mdb"])
def test_crashed_runs_are_named_or_left_out(name: str, published: Path, tmp_path: Path) -> None:
    (published / "000004" / name).unlink()
    with pytest.raises(
        ValueError, match=rf"1 of 7 runs .*--skip-broken leaves them out: 000004: it has no {name}"
    ):
        open_lmdb_set(published)
    source = open_lmdb_set(published, skip_broken=True)
    assert list(source.skipped) == ["000004"]
    zoo = imported(source, tmp_path / "zoo")
    assert "000004" not in zoo.read_runs()["name"].to_pylist()
    assert zoo.header.num_runs == 6


def rewrite(directory: Path, change: object) -> None:
    path = directory / "runs.json"
    document = json.loads(path.read_text())
    change(document["checkpoints"])  # pyright: ignore[reportCallIssue]
    path.write_text(json.dumps(document))


def put_sizes(directory: Path, content: bytes) -> None:
    with lmdb.open(str(directory), map_size=2**28) as environment, environment.begin(write=True) as t:
        t.put(b"000005/ep000_it00002.pt_arch", content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "runs.json").write_text("{"), "its runs.json cannot be read"),
        (lambda d: (d / "runs.json").write_text("{}"), "its runs.json has no checkpoints of run 000005"),
        (
            lambda d: (d / "runs.json").write_text("[1]"),
            'expected {"checkpoints": {"000005/ep000_it00000.pt": {metric: number}, ...}}, found a list',
        ),
        (lambda d: (d / "runs.json").write_text('{"a": 1}'), "found an object with the keys 'a'"),
        (lambda d: (d / "runs.json").write_text('{"checkpoints": []}'), "found a list as checkpoints"),
        (lambda d: (d / "runs.json").write_text('{"000005": 3}'), "found a number"),
        (lambda d: rewrite(d, lambda c: c.update({"k": 0.5})), "found a number as the metrics of 'k'"),
        (lambda d: rewrite(d, lambda c: c.clear()), "it has no checkpoints"),
        (lambda d: rewrite(d, lambda c: c.update({"000005/x.pt": {}})), "'000005/x.pt' is not called"),
        (
            lambda d: rewrite(d, lambda c: c.update({"000005/ep009_it00001.pt": {"avg_test_err": 1}})),
            "its data.mdb has no entry 000005/ep009_it00001.pt_arch",
        ),
        (lambda d: rewrite(d, lambda c: c["000005/ep000_it00002.pt"].pop("avg_test_err")), "has the metrics"),
        (
            lambda d: rewrite(d, lambda c: c["000005/ep000_it00002.pt"].update(avg_test_err="bad")),
            "avg_test_err of 000005/ep000_it00002.pt is 'bad'",
        ),
        (
            lambda d: rewrite(d, lambda c: c["000005/ep000_it00002.pt"].update(avg_test_err=10**400)),
            "avg_test_err of 000005/ep000_it00002.pt is '1000",
        ),
        (lambda d: (d / "runs.json").write_text("[" * 200_000), "its runs.json cannot be read"),
        (lambda d: put_sizes(d, np.array([1024, 16, 160, np.inf], "<f4").tobytes()), "_arch does not hold"),
        (lambda d: put_sizes(d, b"abc"), "_arch does not hold sizes of tensors"),
        (lambda d: truncate(d / "data.mdb"), "its data.mdb is truncated"),
        (lambda d: (d / "data.mdb").write_bytes(b"no lmdb" * 4000), "its data.mdb cannot be read"),
    ],
)
def test_broken_runs_say_what_is_wrong(damage: object, words: str, published: Path) -> None:
    damage(published / "000005")  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match=r"1 of 7 runs cannot be imported.*000005: ") as stop:
        open_lmdb_set(published)
    assert words in str(stop.value)
    assert list(open_lmdb_set(published, skip_broken=True).skipped) == ["000005"]


def test_networks_of_another_task_are_refused(published: Path) -> None:
    with pytest.raises(
        ValueError, match=r"have \[1024, 16, 160, 10\] elements, those of task 'quadratic-v0' \[8\]"
    ):
        open_lmdb_set(published, task=make("quadratic-v0"), skip_broken=True)


def test_a_run_of_another_network_is_refused(published: Path) -> None:
    write_run(published, {"000009": supervised_run(9, size=7)}, (3, 4))
    with pytest.raises(
        ValueError, match=r"000009: its tensors have \[3, 4\] elements, of runs before \[1024"
    ):
        open_lmdb_set(published)


def test_diverged_runs_are_kept_and_flagged(tmp_path: Path) -> None:
    run = dict(supervised_run(1, size=3))
    last = list(run)[-1]
    run[last] = (np.full(3, np.nan), dict.fromkeys(run[last][1], math.inf) | {"avg_test_loss": math.nan})
    write_run(tmp_path / "set", {"000000": supervised_run(0, size=3)}, (3,))
    directory = write_run(tmp_path / "set", {"000001": run}, (3,))
    text = (directory / "runs.json").read_text()
    assert "NaN" in text
    assert "Infinity" in text
    zoo = imported(open_lmdb_set(tmp_path / "set"), tmp_path / "zoo")
    assert zoo.read_runs()["status"].to_pylist() == ["finished", "diverged"]
    assert zoo_summary(zoo)["diverged_runs"] == 1
    assert all_problems(zoo) == []
    write_card(zoo)


def test_the_published_policies_with_their_returns(tmp_path: Path) -> None:
    arch = (1, 128, 32, 1024, 32, 32, 1)
    rng = np.random.default_rng(0)
    for seed in range(2):
        run = {f"it{it:05d}.pt": (rng.normal(size=1250), {"train_ret": 10.0 * it}) for it in (0, 3, 500)}
        write_run(tmp_path / "cartpole", {f"{seed:06d}": run}, arch)
    zoo = imported(open_lmdb_set(tmp_path / "cartpole"), tmp_path / "zoo")
    assert (zoo.header.prompted, zoo.header.objective) == ("train_return", "max")
    assert zoo.header.spec.names[:2] == ("log_std", "actor.0.weight")
    assert zoo.header.spec.shapes[1] == (32, 4)
    rows = zoo.read_unit(0)
    assert rows.steps.tolist() == [[0, 3, 500]] * 2
    assert rows.metrics["train_return"].tolist() == [[0, 30, 5000]] * 2
    with pytest.raises(ValueError, match="--steps-per-epoch is for sets with epochs"):
        open_lmdb_set(tmp_path / "cartpole", steps_per_epoch=5)


def test_steps_per_epoch_can_be_given_where_the_last_iteration_was_not_saved(published: Path) -> None:
    assert open_lmdb_set(published, steps_per_epoch=468).read(0).steps.tolist() == [0, 2, 5, 471, 473]
    with pytest.raises(ValueError, match="beyond --steps-per-epoch 4"):
        open_lmdb_set(published, steps_per_epoch=4)


def test_folders_that_are_no_sets(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        open_lmdb_set(tmp_path / "none")
    with pytest.raises(
        ValueError, match=f"is a single run directory; give the folder that holds it: {published}"
    ):
        open_lmdb_set(published / "000000")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no run directories"):
        open_lmdb_set(tmp_path / "empty")


def test_a_unit_reads_its_own_runs_and_no_others(published: Path, tmp_path: Path) -> None:
    source, read = open_lmdb_set(published), []

    def noting(run_id: int) -> Run:
        read.append(run_id)
        return source.read(run_id)

    zoo = begin_import(source, tmp_path / "zoo", task=None, stack_size=3)
    import_unit(zoo, dataclasses.replace(source, read=noting), None, 1)
    assert read == [3, 4, 5]
    assert zoo.finished_units() == [1]


def test_lmdb_missing_is_a_line_with_the_cure(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"pip install 'thetaforge\[lmdb\]'"):
        open_lmdb_set(published)


def test_a_zoo_without_a_task_says_so_where_one_is_needed() -> None:
    with pytest.raises(ValueError, match="imported without a task"):
        make("imported")
