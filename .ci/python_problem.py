"""Prints, in one line, why this interpreter or this folder cannot hold an environment; prints nothing where it can. Runs on any Python."""

import os
import shutil
import sys

NEEDED_GB = 6  # the largest environment, and pip's cache and unpacked wheels beside it

version = "%d.%d" % sys.version_info[:2]
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    reason = "TensorFlow has no wheel for it" if sys.version_info[:2] >= (3, 14) else "JAX has no current wheel for it"
    sys.exit(
        "Python %s (%s) cannot run xretrieval: %s. Choose 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..."
        % (version, sys.executable, reason)
    )
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    sys.exit(
        "Python %s (%s) has no venv: install it (Debian: apt-get install python%s-venv) or choose another interpreter: make PYTHON=... ..."
        % (version, sys.executable, version)
    )
here = os.getcwd()
if not os.access(here, os.W_OK):
    sys.exit("%s: not writable; clone the repository to a folder of your own" % here)
free = shutil.disk_usage(here).free / 1e9
if free < NEEDED_GB:
    sys.exit("%s: %.1f GB free, an environment needs %d GB; free some, or clone to another disk" % (here, free, NEEDED_GB))
