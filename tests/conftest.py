"""Every test sees eight CPU devices and no network."""

import os
import signal
import socket

# For processes that tests start; JAX in this process is told below. Without it, an installed libtpu looks for a TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# Compiling for a TPU takes none: two processes may do it at once.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")

# A shell starts what it puts in the background with Ctrl-C ignored, and processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
import small_run

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def _inside_only(connect):
    def connect_inside(self, address):
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and not (address[0] in ("localhost", "::1") or address[0].startswith("127.")):
            raise PermissionError(f"a test may not reach outside: {address[0]}")
        return connect(self, address)

    return connect_inside


# For good, not in a fixture: fixtures of a module run outside those of a test. Libraries in C open sockets of their own past this.
socket.socket.connect = _inside_only(socket.socket.connect)
socket.socket.connect_ex = _inside_only(socket.socket.connect_ex)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder in which every verb has run."""
    return small_run.run(tmp_path_factory.mktemp("run"))
