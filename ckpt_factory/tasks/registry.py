"""The registry of tasks, in Gymnasium's grammar: register, make, spec, registry, ids "module:name-v0".

A task may have options, which are part of its id: "module:name-v0?hidden=64". Zoos and generators keep the
id, so that whoever reads them makes the very same task.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import options
from .base import Task


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """How a task is made: `entry_point(data, **options)`, with the data that `load(data_root)` reads, if any.

    Options are the entry point's keyword-only parameters that are annotated as int, float, bool, str or a
    Literal, and that no functools.partial has bound.
    """

    id: str
    entry_point: Callable[..., Task]
    load: Callable[[Path | None], Any] | None = None


registry: dict[str, TaskSpec] = {}
NO_TASK = "imported"
"""In the place of a task's id, in zoos that were imported without one."""


def register(
    id: str, entry_point: Callable[..., Task], load: Callable[[Path | None], Any] | None = None
) -> None:
    """Make a task known under `id`. Do it at import of the module that the id names ("module:name-v0").

    Args:
        id: "name-v0", found under the name of any module that registers it; or with the module's, as lists
            of known tasks then show it.
    """
    registry[id] = TaskSpec(id=id, entry_point=entry_point, load=load)


def spec(id: str) -> TaskSpec:
    """The registered spec of `id`; "module:name" imports the module first, so it works in a fresh process.

    Raises:
        ValueError: no such module, task or option, or no such value; the message suggests the nearest.
    """
    id, given = options.split(id)
    if id == NO_TASK:
        raise ValueError(
            "the zoo was imported without a task, so that its networks can neither be permuted nor measured; "
            "import it again with --task ID"
        )
    module, colon, name = id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError) as error:  # TypeError: a relative name
            here = f"; searched: the folder {Path.cwd()} and" if _searches_here() else "; searched:"
            raise ValueError(
                f"task {id!r}: cannot import module {module!r} ({error}){here} what is installed"
            ) from None
    found = registry.get(id) or registry.get(name)
    if found is None:
        full = {_without_version(each.rpartition(":")[2]): each for each in registry}
        close = [full[each] for each in difflib.get_close_matches(_without_version(name), full, 1)]
        meant = [each if ":" in each else module + colon + each for each in close]
        hint = f"Did you mean {meant[0]!r}? " if meant else ""
        own = "" if colon else f"; one of your own is 'MODULE:{id}', by the file MODULE.py that registers it"
        raise ValueError(f"unknown task {id!r}. {hint}Known tasks: {', '.join(sorted(registry))}{own}")
    options.convert(id, found.entry_point, given)
    return found


def _without_version(name: str) -> str:
    """What tells a name from others: nearly all end in -v0."""
    return re.sub(r"-v\d+$", "", name)


def _searches_here() -> bool:
    return not {"", str(Path.cwd())}.isdisjoint(sys.path)


def with_options(id: str, /, **values: object) -> str:
    """The id with these options on top of those that it has; None leaves one as it is.

    Raises:
        ValueError: as `spec`.
    """
    name, given = options.split(id)
    changed = options.join(name, given | {key: each for key, each in values.items() if each is not None})
    return _canonical(changed, spec(changed))


def make(id: str, *, data_root: Path | str | None = None, data: Any = None) -> Task:
    """The task of that id.

    Args:
        id: "digits-mlp-v0", "module:name-v0" for a task that another module registers, with the task's
            options behind it, if it has any: "module:name-v0?option=value&other=value".
        data_root: where its images are, for tasks that need some (see `ckpt_factory.tasks.data`).
        data: the data itself, if already loaded; a worker gets it from the object store. None is loaded.
    """
    found = spec(id)
    if data is None and found.load is not None:
        data = found.load(Path(data_root) if data_root is not None else None)
    name, given = options.split(id)
    chosen = options.convert(name, found.entry_point, given)
    task = found.entry_point(*(() if found.load is None else (data,)), **chosen)
    task.id = _canonical(id, found)
    return task


def _canonical(id: str, found: TaskSpec) -> str:
    """The one spelling of an id: options in the order of their names, values as Python writes them."""
    name, given = options.split(id)
    return options.join(name, options.convert(name, found.entry_point, given))
