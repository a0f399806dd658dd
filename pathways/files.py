"""Files: replaced in one step, read with every way they can be wrong named in one sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathways.target import GatedTarget


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name and rename it when it is complete.

    Whatever goes wrong inside the block (a full disk, an exception, ctrl-C), the temporary file is
    deleted and a file that was there before stays as it was. A symbolic link is followed.

    Args:
        path (path): the file to write; its directory must exist.

    Yields:
        Path: a new empty file in the same directory; write to it, and close it before leaving.

    Raises:
        OSError: the file cannot be written; the sentence names ``path`` and the reason.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replace_file(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("done")
        >>> [entry.name for entry in folder.iterdir()]
        ['note.txt']
    """
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file():
        # Renaming over a device or a pipe would replace it by a file.
        raise OSError(errno.EINVAL, f"cannot write {path} (it is not a regular file)")
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile: its files are private (mode 0600), this one follows the umask.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        # Without this the rename can reach the disk before the data does.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno or errno.EIO, f"cannot write {path} ({reason}); it is left as it was"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    version: int,
    header: Mapping[str, str],
) -> None:
    """Write tensors and a header of strings to a safetensors file, in one step.

    ``format_version``, ``kind`` and a ``checksum`` of the tensors are added to the header.

    Args:
        path (path): file to write.
        tensors (mapping of str to Tensor): any dtypes and devices.
        kind (str): what the file holds, for example ``"class_pathways"``.
        version (int): version of that kind's format.
        header (mapping of str to str): further entries.

    Raises:
        OSError: the file cannot be written; an old file is left as it was.
    """
    from safetensors.torch import save

    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {
        **header,
        "format_version": str(version),
        "kind": kind,
        "checksum": _checksum(contents),
    }
    # Serialised in memory: safetensors' own writer hides the reason of a failed write in a text.
    data = save(contents, metadata=metadata)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def read_safetensors(
    path: str | os.PathLike[str], *, kind: str, version: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file of a known kind; nothing in it can execute code.

    Args:
        path (path): the file.
        kind (str): what it must hold.
        version (int): newest version of the format that the caller understands.

    Returns:
        tensors (dict of Tensor on the CPU) and header (dict of str).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, damaged, not written by pathways, of another kind, or in
            a newer format.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, f"expected a {kind} file, found none", str(path))
    if os.path.isdir(path):
        raise ValueError(f"{path} must be a {kind} file, got a directory")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from error
    if "kind" not in header or not header.get("format_version", "").isdigit():
        raise ValueError(
            f"{path} must be a {kind} file, got a safetensors file that pathways did not write"
        )
    if header["kind"] != kind:
        raise ValueError(f"{path} must be a {kind} file, got a {header['kind']} file")
    if int(header["format_version"]) > version:
        raise ValueError(
            f"{path} must be in format version {version} or older, got {header['format_version']}; "
            "upgrade pathways to read it"
        )
    if "checksum" in header and header["checksum"] != _checksum(tensors):
        raise ValueError(f"{path} is damaged (its checksum does not match its contents)")
    return tensors, header


def check_fingerprint(path: str | os.PathLike[str], found: str, target: GatedTarget | str) -> None:
    """Refuse a file that was made for another target.

    Args:
        path (path): the file, for the message.
        found (str): the fingerprint in the file; ``""`` when it records none.
        target (GatedTarget or str): the target at hand or its fingerprint.

    Raises:
        ValueError: the fingerprints differ (both are named), or the file records none.
    """
    expected = target if isinstance(target, str) else target.fingerprint
    if found == expected:
        return
    if not found:
        raise ValueError(
            f"{path} records no target, so that it cannot be checked against target {expected}; "
            "load it without a target to take it as it is"
        )
    raise ValueError(f"{path} was made for another target (file: {found}, this target: {expected})")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
