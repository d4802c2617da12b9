"""What a command has found: result.json, in JSON that every program reads."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckpt_factory.files import write_text

RESULT = "result.json"


def write_result(out: Path, result: Mapping[str, Any]) -> None:
    """Write `out`/result.json. JSON knows no infinity (a step count never reached) and no NaN: null."""
    text = json.dumps(_finite(dict(result)), indent=2, default=str, allow_nan=False)
    write_text(out / RESULT, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
