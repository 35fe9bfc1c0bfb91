"""An open file as one process's own: a lock of the operating system, which ends with the file or with the process."""

import sys
from typing import BinaryIO

if sys.platform == "win32":
    import errno
    import msvcrt
    import os

    # Windows keeps everybody else from reading and writing what is locked, so this is a byte that no file reaches.
    _BEHIND = 2**40

    def lock(file: BinaryIO) -> None:
        """Lock ``file`` until it is closed. Raises BlockingIOError if it is locked already, OSError if it cannot be."""
        os.lseek(file.fileno(), _BEHIND, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process") from None
        finally:
            os.lseek(file.fileno(), 0, os.SEEK_END)

else:
    import fcntl

    def lock(file: BinaryIO) -> None:
        """Lock ``file`` until it is closed. Raises BlockingIOError if it is locked already, OSError if it cannot be."""
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
