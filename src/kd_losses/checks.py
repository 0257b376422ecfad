"""One way to refuse a bad parameter."""


def require(ok: bool, name: str, value: object, wanted: str) -> None:
    """Raise `ValueError` naming the parameter, what it must be and what it is."""
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {value}")
