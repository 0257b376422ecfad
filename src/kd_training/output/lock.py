"""One run at a time in a directory."""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_FILE = ".lock"


@contextmanager
def locked(output_dir: Path, key: str = "output_dir") -> Iterator[None]:
    """Hold a directory, which is made if it is not there, until the context or the process ends.

    The lock is a record lock of POSIX: the kernel drops it with the process, however that ends,
    and neither forks (workers of a data loader) nor programs that are started inherit it. It holds
    on NFS too. The file says who has it.

    Raises:
        ValueError: If another process holds it; the message names that one.
    """
    made = [path for path in (output_dir, *output_dir.parents) if not path.exists()]
    handle = _acquire(output_dir, key)
    try:
        yield
    finally:
        # Still locked: whoever opens the old file from now on sees that it has lost its name.
        (output_dir / LOCK_FILE).unlink(missing_ok=True)
        os.close(handle)
        with suppress(OSError):  # a run that was refused leaves no empty folders
            for path in made:
                path.rmdir()


def _acquire(output_dir: Path, key: str) -> int:
    path = output_dir / LOCK_FILE
    while True:
        output_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as err:
            holder = os.read(handle, 1000).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise ValueError(
                f"{key} {output_dir} is in use by {holder}; wait for its end, or set another {key}"
            ) from err
        except OSError as err:
            print(
                f"warning: {key} {output_dir} is on a file system without locks ({err}): "
                "nothing keeps a second run out of it",
                file=sys.stderr,
            )
        if _has_name(handle, path):
            break
        os.close(handle)  # its owner has just ended, and taken the name with it
    with suppress(OSError):  # a full disk is not this file's to report
        os.ftruncate(handle, 0)
        os.pwrite(handle, _who().encode(), 0)
    return handle


def _has_name(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _who() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}"
