"""Directories that appear whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` when the block ends without an error.

    The work happens in a hidden sibling of ``path``, on the same file system, so that the last
    step is one rename. An error or an interrupt removes the sibling and leaves ``path`` as it was.

    Raises:
        OSError: If ``path`` exists and is not an empty directory, or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as staging:
        directory = Path(staging) / path.name
        directory.mkdir()
        yield directory
        directory.replace(path)
