"""Files that hold secrets: written whole or not at all, for their owner only.

A new file is written beside its final place, synced, then linked there, so that a reader or a
crash meets either nothing or the whole content.
"""

import os
import secrets
from pathlib import Path

from elkeid.errors import KeysError

FILE_MODE = 0o600
FOLDER_MODE = 0o700
OTHERS = 0o077  # permission bits that a private file must not have


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner enters, or take those rights from an existing one."""
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        if path.stat().st_mode & OTHERS:
            path.chmod(FOLDER_MODE)
    except OSError as error:
        raise KeysError(
            f"{path} cannot be used for keys: {error.strerror}; "
            "choose another server.keys_dir or mend its owner and rights"
        ) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600 and sync it; `FileExistsError` if the name is taken."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
    with os.fdopen(descriptor, "wb") as target:
        target.write(data)
        target.flush()
        os.fsync(descriptor)


def write_new_private(path: Path, data: bytes) -> None:
    """Write ``data`` to a new file of mode 0600, atomically.

    Raises:
        FileExistsError: something of that name is there already; it was left as it is.
        OSError: the disk or the folder does not allow it; nothing was left behind.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_synced(beside, data)
        os.link(beside, path)  # unlike a rename, a link never replaces
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_private(path: Path, data: bytes) -> None:
    """Write ``data`` to a file of mode 0600 in place of what is there, atomically.

    Raises:
        OSError: the disk or the folder does not allow it; what was there is there still.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_synced(beside, data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)
