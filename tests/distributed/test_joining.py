"""How processes find each other: a name that comes to exist later, and the address that process 0 listens at."""

import fcntl
import socket
import struct
import time

import pytest

from xretrieval import joining
from xretrieval.errors import UserError

OTHERS = "198.51.100.7"  # of no machine: RFC 5737


def own_addresses():
    """IPv4 addresses of this machine's interfaces, but loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")]


def named(monkeypatch, fails):
    """The resolver of the machine, which does not know the name `fails` times; returns the times that it was asked."""
    asked = []

    def look(host, *rest, **how):
        asked.append(time.monotonic())
        if len(asked) <= fails:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (OTHERS, 0))] * 2

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return asked


def test_a_name_that_comes_to_exist_is_waited_for(monkeypatch, capsys):
    asked = named(monkeypatch, fails=2)
    assert joining.resolve("run-0.pods:8476", 30) == [OTHERS]
    assert len(asked) == 3
    assert capsys.readouterr().out.count("run-0.pods has no address here yet (Name or service not known)") == 1


def test_a_name_that_never_comes_is_an_error_in_time(monkeypatch):
    named(monkeypatch, fails=10**6)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"coordinator run-0.pods:8476: run-0.pods has no address here after 1.5 s \(Name or .*process 0"):
        joining.join("run-0.pods", 2, 1, initialization_timeout=1.5)
    assert 1.5 <= time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "coordinator, addresses, process, one_host",
    [("localhost:1", ["127.0.0.1"], 0, False), ("127.0.0.1:1", ["127.0.0.1"], 0, False), ("host-0:1", ["127.0.1.1", "::1"], 1, False)],
)
def test_a_coordinator_on_loopback_is_refused_where_there_are_several_hosts(coordinator, addresses, process, one_host):
    with pytest.raises(UserError, match="that is this machine's loopback"):
        joining.check_coordinator(coordinator, addresses, process, one_host)
    joining.check_coordinator(coordinator, addresses, process, one_host=True)


def test_process_0_may_know_its_own_name_as_loopback_and_listens_everywhere_then():
    joining.check_coordinator("host-0:1", ["127.0.1.1"], 0, one_host=False)
    assert joining.bind_address(["127.0.1.1"], one_host=False) is None


def test_the_address_that_process_0_listens_at():
    assert joining.bind_address(["127.0.0.1"], one_host=True) == "127.0.0.1"
    assert joining.bind_address([OTHERS], one_host=False) is None, "a load balancer's, say, that leads here"
    for own in own_addresses():
        assert joining.bind_address([own], one_host=False) == own
        assert joining.bind_address([own, OTHERS], one_host=False) is None, "others may come by either"
    assert joining._at("fd00::1", "[fd00::1]:8476") == "[fd00::1]:8476"
    assert joining._at("10.0.0.2", "host-0:8476") == "10.0.0.2:8476"
