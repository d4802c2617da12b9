"""Options of a task inside its id, like a URL's query: "rl_tasks:gym-v0?env=Acrobot-v1&hidden=64"."""

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import quote, unquote

READABLE = ":/,+"
"""Characters that stay as they are in an option's value, beside letters, digits and "_.-~"."""
KINDS: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


class MissingOptionError(ValueError):
    """A task was asked for without an option that it has to be given."""

    def __init__(self, task: str, option: str):
        super().__init__(f"task {task!r} needs option {option}: '{task}?{option}=...'")
        self.task, self.option = task, option

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.task, self.option)


def split(id: str) -> tuple[str, dict[str, str]]:
    """ "name?b=2&a=1" -> ("name", {"b": "2", "a": "1"}).

    Raises:
        ValueError: what follows the question mark is no list of options.
    """
    name, mark, query = id.partition("?")
    options: dict[str, str] = {}
    for part in query.split("&") if mark else ():
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ValueError(f"task {id!r}: {part!r} is no option; expected {name}?NAME=VALUE&NAME=VALUE")
        if key in options:
            raise ValueError(f"task {id!r} gives option {key} twice; give it once")
        options[key] = unquote(value)
    return name, options


def join(name: str, options: Mapping[str, object]) -> str:
    """The inverse of `split`, with options in the order of their names: one spelling for one task."""
    query = "&".join(f"{key}={quote(_text(options[key]), safe=READABLE)}" for key in sorted(options))
    return f"{name}?{query}" if query else name


def convert(name: str, entry_point: Callable[..., Any], given: Mapping[str, object]) -> dict[str, Any]:
    """Options as the entry point's keyword-only parameters want them: int, float, bool, str or Literal.

    Raises:
        MissingOptionError: an option that has to be given is not.
        ValueError: one line: an option that there is not (with a suggestion), or a value that is none.
    """
    known = _parameters(entry_point)
    for key in given:
        if key not in known:
            if not known:
                raise ValueError(f"task {name!r} takes no options, got {key!r}")
            raise ValueError(
                f"task {name!r} has no option {key!r}. {_did_you_mean(key, known)}"
                f"Its options: {', '.join(sorted(known))}"
            )
    missing = [key for key, each in known.items() if each.default is each.empty and key not in given]
    if missing:
        raise MissingOptionError(name, missing[0])
    return {
        key: _value(f"option {key} of task {name!r}", _text(value), _choices(known[key].annotation))
        for key, value in given.items()
    }


def _parameters(entry_point: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Its options: keyword-only parameters that can be written down and are not bound already."""
    bound: set[str] = set()
    while isinstance(entry_point, functools.partial):
        bound |= entry_point.keywords.keys()
        entry_point = entry_point.func
    if all(each.kind is not each.KEYWORD_ONLY for each in inspect.signature(entry_point).parameters.values()):
        return {}  # without a look at its annotations, which need not even make sense
    return {
        key: each
        for key, each in inspect.signature(entry_point, eval_str=True).parameters.items()
        if each.kind is each.KEYWORD_ONLY and key not in bound and _choices(each.annotation)
    }


def _choices(annotation: Any) -> tuple[Any, ...]:
    """What an annotation allows: one of KINDS, or the values of a Literal; `| None` is for defaults."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [each for each in typing.get_args(annotation) if each is not types.NoneType]
        return _choices(kinds[0]) if len(kinds) == 1 else ()
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return (annotation,) if annotation in KINDS else ()


def _value(what: str, text: str, choices: tuple[Any, ...]) -> Any:
    kind = choices[0]
    if kind not in KINDS:
        values = {_text(each): each for each in choices}
        if text not in values:
            expected = f"one of {', '.join(values)}"
            raise ValueError(f"{what} is {text!r}. {_did_you_mean(text, values)}Expected {expected}")
        return values[text]
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"{what} is {text!r}; expected {KINDS[kind]}") from None


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""
