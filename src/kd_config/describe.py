"""Every key of a run as a table for people.

python -m kd_config.describe
"""

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from kd_config.schema import COMPONENT, section, takes_names


def keys(path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str]]:
    """Each key by its dotted name, its default and its meaning; sections' own keys follow them."""
    model = section(path)
    assert model is not None
    for name, field in model.model_fields.items():
        inner = (*path, name)
        yield ".".join(inner), _default(field), field.description or ""
        inner = (*inner, "<name>") if takes_names(inner) else inner
        if section(inner) is not None and COMPONENT not in field.metadata:
            yield from keys(inner)


def table() -> str:
    """The keys in markdown."""
    rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in keys()]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be set"
    return "" if _holds_keys(field.default) else f"`{_yaml(field.default)}`"


def _holds_keys(value: Any) -> bool:
    """Whether a default is keys of its own."""
    return hasattr(value, "model_dump")


def _yaml(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(table())
