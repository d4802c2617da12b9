"""What a command has found: result.json, in JSON that every program reads, and arrays beside it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_factory.files import write_text

RESULT = "result.json"


def owned(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own, as safetensors wants them: slices of a single network share theirs."""
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in arrays.items()}


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
