"""Where processes meet: who is missing, came twice or does not fit is said to all, and what is none of ours harms nobody."""

import json
import socket
import threading
import time

import pytest

from launch.local import free_port
from xretrieval import rendezvous
from xretrieval.errors import UserError


def meet(port, *hellos, timeout=5.0, bind="127.0.0.1"):
    """What each process returns, or what it raises; a hello is (number, how many it was told of)."""
    ends = [None] * len(hellos)

    def one(i, process, processes):
        try:
            ends[i] = rendezvous.meet(f"127.0.0.1:{port}", processes, process, f"process {process} of thread {i}", timeout, bind)
        except UserError as error:
            ends[i] = str(error)

    threads = [threading.Thread(target=one, args=(i, *hello)) for i, hello in enumerate(hellos)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # in this order
    for thread in threads:
        thread.join()
    return ends


def test_all_learn_all_names_in_any_order():
    names = [f"process {i} of thread {thread}" for i, thread in ((0, 1), (1, 2), (2, 0))]
    assert meet(free_port(), (2, 3), (0, 3), (1, 3)) == [names] * 3


@pytest.mark.parametrize(
    "hellos, timeout, text",
    [
        ([(0, 3), (1, 3)], 0.5, "after 0.5 s there is still missing: process 2; start it, or see its log"),
        ([(0, 3), (1, 3), (1, 3)], 5, "process 1 of thread 1 and process 1 of thread 2 both are process 1; give each its own number"),
        ([(0, 3), (1, 2)], 5, "process 1 of thread 1 was told of 2 processes, process 0 of thread 0 of 3; give all the same number"),
        ([(0, 3), (3, 4)], 5, "process 3 of thread 1 was told of 4 processes"),
    ],
)
def test_what_does_not_fit_is_said_to_all_that_have_come(hellos, timeout, text):
    ends = meet(free_port(), *hellos, timeout=timeout)
    assert text in ends[0]
    # Whom process 0 cannot tell any more, for it was one too many, sees that it ended.
    assert [end for end in ends if text not in end and "process 0 at 127.0.0.1" not in end] == []
    assert sum(text in end for end in ends) >= len(ends) - 1


def test_a_process_that_leaves_before_all_have_come_is_named():
    port = free_port()

    def leave():
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(json.dumps({"process": 1, "processes": 3, "name": "process 1 on B"}).encode() + b"\n")

    thread = threading.Thread(target=leave)
    thread.start()
    assert meet(port, (0, 3)) == ["process 1 on B ended before all had come; its log says why"]
    thread.join()


def test_what_connects_and_is_none_of_ours_is_passed_over():
    port, stray = free_port(), []

    def knock():
        time.sleep(0.1)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"", b"[]\n", b"x" * 9000):
            stray.append(socket.create_connection(("127.0.0.1", port)))
            stray[-1].sendall(said)

    thread = threading.Thread(target=knock)
    thread.start()
    ends = meet(port, (0, 2), timeout=0.6), meet(port, (0, 2), (1, 2))
    thread.join()
    for connection in stray:
        connection.close()
    assert ends[0] == ["after 0.6 s there is still missing: process 1; start it, or see its log"]
    assert ends[1][0] == ends[1][1] == ["process 0 of thread 0", "process 1 of thread 1"]


def test_where_nothing_listens_is_said_after_the_time():
    port = free_port()
    begun = time.monotonic()
    (end,) = meet(port, (1, 2), timeout=0.5)
    assert end.startswith(f"after 0.5 s process 0 does not listen at 127.0.0.1:{port} (Connection refused)")
    assert 0.5 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\xff\xfe\x00\n", b"220\n", b'{"status": 404}\n', b"[1]\n"])
def test_another_service_on_the_port_is_told_from_process_0(answer):
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]

        def serve():
            connection, _ = service.accept()
            with connection:
                connection.sendall(answer)
                connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        (end,) = meet(port, (1, 2))
        thread.join()
    assert end.startswith(f"what answers at 127.0.0.1:{port} is another service, not process 0 of this run (it says b")
    assert "--coordinator" in end


def test_a_port_that_is_taken_is_named_with_the_address():
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        (end,) = meet(port, (0, 2))
    assert end == f"port {port} of 127.0.0.1: process 0 cannot listen there (Address already in use); give another one with --coordinator"


@pytest.mark.parametrize("bind, reached", [("127.0.0.1", False), (None, True)])
def test_process_0_listens_at_the_address_it_was_given_alone(bind, reached):
    port, found = free_port(), []

    def other():
        time.sleep(0.3)
        with socket.socket() as probe:
            found.append(probe.connect_ex(("127.0.0.2", port)) == 0)

    thread = threading.Thread(target=other)
    thread.start()
    meet(port, (0, 2), timeout=0.8, bind=bind)
    thread.join()
    assert found == [reached]
