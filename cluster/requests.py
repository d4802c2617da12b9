"""What a folder was made for: a note in it, so that the same command resumes it and another is refused."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckpt_factory.files import check_same
from ckpt_factory.zoo import HEADER, Zoo, sha256

from .train_config import GeneratorConfig

REQUEST = "request.json"
UNSAID = {"metrics": [], "hidden_space": False}
"""What older notes say nothing of, as it was then."""
ELSEWHERE = ("zoo", "out", "data_root")
"""Where things are may change between a command and the one that resumes it."""


def wanted_of(config: GeneratorConfig, zoo: Zoo) -> dict[str, Any]:
    """All that a training, or a sweep of trainings, depends on."""
    wanted = json.loads(json.dumps(asdict(config), default=str))
    wanted = {name: value for name, value in wanted.items() if name not in ELSEWHERE}
    return wanted | {"zoo_header": sha256(zoo.path / HEADER), "shards": len(zoo.finished_units())}


def check_held(
    path: Path, wanted: dict[str, Any], another: str, *, also: str | None = None
) -> dict[str, Any]:
    """What the note in a folder says, if that is what is wanted; `also` is one more thing that it must say.

    Raises:
        ValueError: the note is damaged, or of "another training".
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        held, wanted = UNSAID | held | held.pop("training"), wanted | wanted["training"]
        if also is not None:
            held[also]
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder, or give another --out") from None
    del wanted["training"]
    check_same(f"{path.parent} holds {another}", held, wanted)
    return held
