"""Where stderr goes, for libraries that print past Python: their C++ and the processes that they start write to file descriptor 2, or raise where nobody hears."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def redirected(path: str | os.PathLike = os.devnull) -> Iterator[int]:
    """Sends descriptor 2 to a file; gives a descriptor of where it went before, which is closed at the end."""
    sys.stderr.flush()
    kept, file = os.dup(2), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield kept
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def pass_over(message: str) -> None:
    """Of the exceptions that a library's threads can raise nowhere, which Python prints, those with this message are not printed any more."""
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != message:
            before(unraisable)

    sys.unraisablehook = hook
