"""A connection to Milvus: the embedded file's traps and the cluster's errors, in one place."""

import collections
import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator

from milvus_lite.server_manager import server_manager_instance
from pymilvus import MilvusClient, MilvusException

from xretrieval.errors import UserError

# They print a traceback before they raise; what the user needs is in the exception, which becomes a UserError.
for _name in ("pymilvus", "milvus_lite", "grpc._server"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

# How many connections of this process hold a file. The last to close must stop the file's server: closing the client leaves it running,
# and the file locked against every other process.
_holders: collections.Counter[str] = collections.Counter()


def is_cluster(uri: str) -> bool:
    """Whether `uri` is a cluster's address rather than a path."""
    return uri.startswith(("http://", "https://"))


class Connection:
    """An open connection.

    Attributes:
      client: the client.
      name: the path or address, without the password that an address may carry.
      is_cluster: False for a file, which searches exactly.
    """

    def __init__(self, uri: str, token: str = ""):
        """Connects.

        Raises:
          UserError: the path cannot hold an index, another process has it open, or the cluster does not answer.
        """
        self.name = re.sub("//[^/@]*@", "//", uri)
        self.is_cluster = is_cluster(uri)
        self._path = "" if self.is_cluster else os.path.abspath(uri)
        if self.is_cluster:
            with self.errors():
                self.client = MilvusClient(uri, token=token, timeout=20)
            return
        self._check_path()
        try:
            # By itself gRPC would send even this machine's own address through a proxy of the environment.
            self.client = MilvusClient(self._path, grpc_options={"grpc.enable_http_proxy": 0})
        except MilvusException as error:
            raise UserError(f"{self.name}: {_why_not(self._path)}") from error
        _holders[self._path] += 1

    def _check_path(self) -> None:
        folder = os.path.dirname(self._path)
        if not self._path.endswith(".db"):
            raise UserError(f"{self.name}: the path of an index ends in .db, and a cluster's address begins with http:// or https://")
        if not os.path.isdir(folder):
            raise UserError(f"{self.name}: the folder {folder} does not exist; make it first")
        if not os.path.exists(self._path):
            server_manager_instance.release_server(self._path)  # of an index that stood here and was deleted while it was open
        elif not os.path.isdir(self._path):
            raise UserError(f"{self.name}: a file, where an index is a folder; move it away or give another path")

    def close(self) -> None:
        """Lets go of the file, so that another process can open it. Closing again does nothing."""
        self.client.close()
        if self._path:
            _holders[self._path] -= 1
            if not _holders[self._path]:
                server_manager_instance.release_server(self._path)
            self._path = ""

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Milvus's errors as a UserError."""
        try:
            yield
        except MilvusException as error:
            raise UserError(f"{self.name}: Milvus says: {error.message}") from error

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """As `errors`, for the time until somebody owns the connection."""
        try:
            with self.errors():
                yield
        except BaseException:
            self.close()
            raise


def _why_not(path: str) -> str:
    """Milvus only says that opening failed."""
    if not os.access(path if os.path.exists(path) else os.path.dirname(path), os.W_OK):
        return "the index cannot be written, and even a search has to lock it; give another path or copy it"
    with contextlib.suppress(FileNotFoundError), open(os.path.join(path, "LOCK"), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another process has the index open; close it there first, or use a cluster"
    return "the index is damaged, or was made by another version of Milvus; make it again with `xretrieval index`"
