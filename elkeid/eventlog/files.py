"""The file operations whose failure the log must survive; tests pass a set that fails."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import NamedTuple


class Space(NamedTuple):
    """Room on a volume, bytes."""

    free: int  # for this user, without the blocks kept for root
    total: int


class FileOperations:
    """Straight through to the operating system."""

    writev = staticmethod(os.writev)
    pwrite = staticmethod(os.pwrite)
    ftruncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    close = staticmethod(os.close)
    unlink = staticmethod(os.unlink)

    def open(self, path: Path, flags: int) -> int:
        """Open or create a file that only its owner may read."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def allocate(self, fd: int, size: int) -> None:
        """Give a file ``size`` bytes of disk; ENOSPC when there are not as many."""
        os.posix_fallocate(fd, 0, size)

    def space(self, path: Path) -> Space:
        """Say how full the volume of ``path`` is."""
        stat = os.statvfs(path)
        return Space(stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize)


def sync_directory(files: FileOperations, path: Path) -> None:
    """Make new and removed names in a directory durable."""
    fd = files.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def replace_file(files: FileOperations, path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` durably: it holds the old or the new content, never a part."""
    fresh = path.with_name(path.name + ".new")
    fd = files.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        try:
            if files.writev(fd, [data]) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(fresh))
            files.fsync(fd)
        finally:
            files.close(fd)
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            files.unlink(fresh)
        raise
    sync_directory(files, path.parent)


def try_writing(files: FileOperations, path: Path, size: int) -> None:
    """Write a file of ``size`` bytes to the disk and remove it; `OSError` when that fails."""
    fd = files.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        try:
            if files.writev(fd, [bytes(size)]) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            files.fsync(fd)
        finally:
            files.close(fd)
    finally:
        files.unlink(path)


def lock_file(path: Path) -> int | None:
    """Take the exclusive lock that ``path`` stands for; None when another process has it.

    Returns:
        The descriptor that holds the lock until it is closed.
    """
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        # Its last holder may have removed the name between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        os.close(fd)
