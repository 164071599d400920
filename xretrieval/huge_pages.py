"""Huge pages for malloc."""

import os
import sys


def use() -> None:
    """Starts this process again with huge pages for malloc, a setting that glibc reads at the start only.

    XLA:CPU asks for its buffers anew in every step: with pages of 4 KiB, 40 % of two cores went into the kernel, and a step took 1.3 times
    as long.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
