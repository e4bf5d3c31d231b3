"""Packs the meshray that runs here into a wheel, so that other hosts can install exactly this one.

*Shell (files).* Runs in ``meshray up``. Needs neither a build tool nor a network, and works for a checkout as for an
installed package: all that meshray consists of is Python files and the metadata of its installation.

Source: the wheel format, PEP 427 and PEP 376 (RECORD).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import zipfile

from meshray import version
from meshray.errors import MeshrayError
from meshray.processes.host_bootstrap import digest_of, files_below

_EPOCH = (1980, 1, 1, 0, 0, 0)
_WHEEL = "Wheel-Version: 1.0\nGenerator: meshray\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def own_digest() -> str:
    """Return the digest of the sources that run here."""
    return digest_of(_folder())


def pack(directory: str) -> str:
    """Write the wheel into ``directory`` and return its path. Equal sources give equal bytes."""
    try:
        installed = importlib.metadata.distribution("meshray")
    except importlib.metadata.PackageNotFoundError as error:
        raise MeshrayError("meshray is not installed in this Python, so hosts cannot be given the same one: "
                           "pip install -e . in its checkout") from error
    notes = f"meshray-{version.__version__}.dist-info"
    content = {f"meshray/{relative}": _read(path) for path, relative in files_below(_folder())
               if not relative.startswith("cli" + os.sep)}
    command_line = importlib.util.find_spec("meshray.cli")
    assert command_line is not None and command_line.origin is not None, "the command line is a part of meshray"
    content |= {f"meshray/cli/{relative}": _read(path)
                for path, relative in files_below(os.path.dirname(command_line.origin))}
    content[f"{notes}/WHEEL"] = _WHEEL.encode()
    for name in ("METADATA", "entry_points.txt"):
        content[f"{notes}/{name}"] = (installed.read_text(name) or "").encode()
    path = os.path.join(directory, f"meshray-{version.__version__}-py3-none-any.whl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*content.items(), (f"{notes}/RECORD", _record(content, notes))]:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    return path


def _record(content: dict[str, bytes], notes: str) -> bytes:
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in content.items()]
    return "\n".join([*lines, f"{notes}/RECORD,,", ""]).encode()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _folder() -> str:
    return os.path.dirname(version.__file__)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
