"""`theta prompt` into a folder that holds networks already."""

import json
from pathlib import Path

import pytest

from cluster.prompt import remove_former


def test_networks_of_an_earlier_prompt_make_room_and_nothing_else_does(tmp_path: Path) -> None:
    own = [tmp_path / f"network-{k:03d}-prompt-0.1.safetensors" for k in range(3)]
    others = [tmp_path / "mine.safetensors", tmp_path / "notes.txt", tmp_path.parent / "outside.safetensors"]
    for path in (*own, *others):
        path.touch()
    listed = [*(path.name for path in own), "gone.safetensors", "notes.txt", "../outside.safetensors"]
    (tmp_path / "result.json").write_text(json.dumps({"networks": [{"file": name} for name in listed]}))
    assert remove_former(tmp_path, [own[1]]) == 2
    assert [path.exists() for path in (*own, *others)] == [False, True, False, True, True, True]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"networks": 3}', '{"networks": [1]}'])
def test_without_a_list_of_them_all_stays(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "mine.safetensors").touch()
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert remove_former(tmp_path, []) == 0
    assert (tmp_path / "mine.safetensors").exists()
