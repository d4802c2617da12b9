"""Command: one verb of the command line, as the module that does its work declares it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Outcome = tuple[dict[str, Any], Path, int]
"""What goes into result.json, the folder it goes into, and the exit status."""


@dataclass(frozen=True)
class Command:
    """Its options are the fields of `config`, its presets functions that return such a config."""

    config: type[Any]
    run: Callable[[Any], Outcome]
    examples: str
    presets: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    check: Callable[[Any], object] = lambda config: None
    """Looks at what the config names, and raises before Ray is started for nothing."""
    starts_ray: bool = True
    """Whether it needs Ray; the others read files, and do so on a cluster if they are given its address."""
    resumes: bool = False
    """Whether it keeps what is done, so that after Ctrl-C the same command goes on; the others begin anew."""
