"""What a person reads of a value that the schema refuses: the first mistake, in one line."""

import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import ValidationError

from kd_config.components import nearest
from kd_config.kinds import WORDS
from kd_config.schema import RunConfig, section, takes_names

_REASONS = {"fp16": " (fp16 needs gradient scaling, which is not done here)"}


def in_words(error: ValidationError) -> str:
    """Key, value and remedy of the first mistake in the order of the schema."""
    order = list(RunConfig.model_fields)
    mistakes = error.errors(include_url=False)
    missing = [str(one["loc"][0]) for one in mistakes if one["type"] == "missing"]
    if missing and not any(one["type"] == "extra_forbidden" for one in mistakes):
        return f"{', '.join(missing)} must be set"

    def place(mistake: Any) -> tuple[bool, int]:
        key = mistake["loc"][0] if mistake["loc"] else ""
        return mistake["type"] != "extra_forbidden", order.index(key) if key in order else -1

    first = min(mistakes, key=place)
    path = _path(first["loc"])
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        parent = section(path[:-1])
        known = [] if parent is None else list(parent.model_fields)
        return f"{key} is no key of a run{nearest(path[-1], known)}"
    if takes_names(path):
        return f"{key} is {first['input']!r}; it must hold names, each with keys of its own"
    inner = section(path)
    if inner is not None:
        names = ", ".join(inner.model_fields)
        return f"{key} is {first['input']!r}; it must hold keys, any of {names}"
    value = first["input"]
    return f"{key} is {value!r}; {_must(path)}{_REASONS.get(str(value), '')}"


def _path(loc: Sequence[Any]) -> list[str]:
    """The keys of a place; what pydantic adds for the branches of a union is left out."""
    path: list[str] = []
    for part in map(str, loc):
        if takes_names(path):
            path.append(part)
            continue
        parent = section(path)
        known = parent is not None and (part in parent.model_fields or len(path) == len(loc) - 1)
        if known or (parent is not None and parent.model_config.get("extra") == "allow"):
            path.append(part)
    return path


def _must(path: Sequence[str]) -> str:
    """What a value at these keys must be, from its annotation."""
    parent = section(path[:-1])
    field = None if parent is None else parent.model_fields.get(path[-1])
    if field is None:  # a weight of a term of one's own
        return "it must be a finite number of at least 0"
    annotations = [field.annotation, *field.metadata]
    choices, kinds, bounds, finite = _read(annotations)
    if choices:
        return f"use {' or '.join(map(str, choices))}"
    name, kind = path[-1], kinds[0] if kinds else str
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        if "lt" in bounds and kind is int:
            return f"it must lie between {low} and {high - 1}"
        if "lt" in bounds:
            return f"use {low} <= {name} < {high}"
        return f"it must lie between {low} and {high}"
    named = dict.fromkeys(WORDS[one] for one in kinds if one is not types.NoneType)
    text = " or ".join(named) or "something else"
    text = text.replace("a number", "a finite number") if finite else text
    if "ge" in bounds:
        return f"it must be {text} of at least {low}"
    return f"it must be {text} above {low}" if "gt" in bounds else f"it must be {text}"


def _read(annotations: Sequence[Any]) -> tuple[list[Any], list[type], dict[str, Any], bool]:
    """The choices, plain types, bounds and finiteness that annotations say, nested ones too."""
    choices: list[Any] = []
    kinds: list[type] = []
    bounds: dict[str, Any] = {}
    finite = False
    for one in annotations:
        origin = get_origin(one)
        if origin is Literal:
            choices += get_args(one)
        elif origin in (Union, types.UnionType) or hasattr(one, "__metadata__"):
            inner = [*get_args(one), *getattr(one, "__metadata__", ())]
            more = _read(inner)
            choices, kinds = choices + more[0], kinds + more[1]
            bounds, finite = bounds | more[2], finite or more[3]
        elif (origin or one) in WORDS:
            kinds.append(origin or one)
        elif hasattr(one, "metadata"):  # pydantic's Field
            more = _read(one.metadata)
            bounds, finite = bounds | more[2], finite or more[3]
        else:
            for name in ("ge", "gt", "le", "lt"):
                if isinstance(one, getattr(annotated_types, name.capitalize())):
                    bounds[name] = getattr(one, name)
            finite = finite or getattr(one, "allow_inf_nan", None) is False
    return choices, kinds, bounds, finite
