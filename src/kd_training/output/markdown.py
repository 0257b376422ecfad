"""Tables for people."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A markdown table whose first ``texts`` columns are text and the others numbers."""
    rule = "|" + "---|" * texts + "---:|" * (len(head) - texts)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])
