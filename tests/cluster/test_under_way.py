"""Progress within stacks: notes of actors, and the bar that counts them."""

import time
from pathlib import Path

import pytest

from ckpt_factory import RunPlan, make
from ckpt_factory.zoo import Zoo, ZooHeader
from cluster import factory, progress
from cluster.under_way import UnderWay

from .processes import wait_for


def test_notes_are_few_and_gone_when_all_is_done(tmp_path: Path) -> None:
    under_way = UnderWay.of_zoo(tmp_path)
    under_way.note(3, 0.5)  # nobody wants to know
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):  # a kill has left the folder behind
        under_way.folder.mkdir(exist_ok=True)
        (under_way.folder / "7").write_text("0.9")
        with under_way.kept():
            assert under_way.shares() == {}
            seldom, often = under_way.notes_of(1, every_s=1000), under_way.notes_of(2, every_s=0)
            for share in (0.25, 0.5, 0.75):
                seldom(share)
                often(share)
            (under_way.folder / "3").write_text("")  # torn
            assert under_way.shares() == {1: 0.25, 2: 0.75}
        assert list(tmp_path.iterdir()) == []
    assert under_way.shares() == {}


def test_the_bar_counts_what_is_done_of_the_stacks_under_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "EVERY_S", 0.01)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    plan = RunPlan(num_steps=4, num_checkpoints=2)
    zoo = Zoo.create(
        tmp_path,
        ZooHeader.of_task(make("quadratic-v0"), plan, num_runs=30, stack_size=10, dtype="float32"),
    )
    said, left = "", {1, 2}

    def says(words: str) -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return words in said

    with factory._bar(zoo, left):
        assert says("zoo: 10/30 runs")
        time.sleep(0.01)  # so that there is a rate
        UnderWay.of_zoo(tmp_path).note(2, 0.4)
        wait_for(lambda: says("zoo: 14/30 runs"), 30, "no fraction of a stack")
        left.discard(2)
        wait_for(lambda: says("zoo: 20/30 runs"), 30, "a stack that is done counts once")
        left.discard(1)
    assert says("zoo: 30/30 runs")
