"""The DNS server: asked by dig, by two hundred at once, and by those who do not speak DNS."""

from __future__ import annotations

import random
import re
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.backends import Name
from tests.examples import real_clients
from tests.server_process import Server, output_of_failure, running
from tests.waiting import LIMIT

HEADER = struct.Struct("!6H")
A, TXT = 1, 16
ADDRESS = socket.inet_aton("192.0.2.80")  # of www.example.test


@pytest.fixture
def server(backend: Name) -> Iterator[Server]:
    with running("examples.dns_server", "--backend", backend) as program:
        yield program


def dig(server: Server, *query: str) -> str:
    host, port = server.address
    arguments = (f"@{host}", "-p", str(port), "+tries=3", "+time=5", "+norecurse", *query)
    return real_clients.run("dig", *arguments, package="bind9-dnsutils").decode()


def short(server: Server, *query: str) -> list[str]:
    return dig(server, "+short", *query).splitlines()


def status(output: str) -> str:
    found = re.search(r"status: (\w+)", output)
    assert found is not None, output
    return found[1]


def question(number: int, name: str = "www.example.test", kind: int = A) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return HEADER.pack(number, 0, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def ask(sock: socket.socket, message: bytes, address: tuple[str, int]) -> bytes:
    sock.sendto(message, address)
    data, sender = sock.recvfrom(65536)
    assert sender == address
    assert data[:2] == message[:2]
    return data


def client(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.settimeout(LIMIT)
    return sock


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_what_dig_asks(server: Server, transport: str) -> None:
    assert short(server, transport, "www.example.test", "A") == ["192.0.2.80"]
    assert short(server, transport, "WWW.Example.TEST", "AAAA") == ["2001:db8::80"]
    assert short(server, transport, "example.test", "NS") == ["ns.example.test."]
    assert short(server, transport, "example.test", "TXT") == ['"a small zone"']
    assert short(server, transport, "example.test", "SOA") == [
        "ns.example.test. hostmaster.example.test. 1 3600 600 86400 60"
    ]
    there_is_none = dig(server, transport, "nobody.example.test")
    assert status(there_is_none) == "NXDOMAIN"
    assert "AUTHORITY: 1" in there_is_none, "the SOA tells for how long"
    no_such_record = dig(server, transport, "www.example.test", "TXT")
    assert (status(no_such_record), "ANSWER: 0, AUTHORITY: 1" in no_such_record) == ("NOERROR", True)
    assert "flags: qr aa;" in no_such_record
    assert status(dig(server, transport, "www.example.org")) == "REFUSED"
    assert status(dig(server, transport, "test")) == "REFUSED"
    assert status(dig(server, transport, "+opcode=status", "www.example.test")) == "NOTIMP"
    assert status(dig(server, transport, "+edns=1", "+noednsnegotiation", "www.example.test")) == "BADVERS"


def test_what_has_no_room_is_asked_again_by_tcp(backend: Name, tmp_path: Path) -> None:
    """Two thousand bytes: dig sees the TC bit and goes on by itself."""
    zone = tmp_path / "zone"
    soa = "example.test SOA ns.example.test mail.example.test 1 2 3 4 5"
    lines = [soa, *(f"large.example.test TXT {number:03} {'x' * 196}" for number in range(10))]
    lines += [f"medium.example.test TXT {number:03} {'y' * 196}" for number in range(4)]
    lines += ["deep.below.example.test A 192.0.2.9"]
    zone.write_text("\n".join(lines), encoding="utf-8")
    with running("examples.dns_server", "--backend", backend, "--zone", str(zone)) as server:
        complete = dig(server, "large.example.test", "TXT")
        assert ("ANSWER: 10" in complete, "(TCP)" in complete) == (True, True)
        assert "tc" in dig(server, "+ignore", "large.example.test", "TXT").partition("flags:")[2].partition(";")[0]
        without = dig(server, "+noedns", "medium.example.test", "TXT")
        assert ("ANSWER: 4" in without, "(TCP)" in without) == (True, True), "512 bytes are all that it may take"
        with_more = dig(server, "medium.example.test", "TXT")
        assert ("ANSWER: 4" in with_more, "(UDP)" in with_more) == (True, True)
        assert status(dig(server, "below.example.test")) == "NOERROR", "there is something below it"


def test_two_hundred_at_once(server: Server) -> None:
    """Each gets the answer to its own question, though all have asked before the first hears anything."""
    with ExitStack() as stack:
        clients = [client(stack) for _ in range(200)]
        for number, sock in enumerate(clients):
            sock.sendto(question(number), server.address)
        for number, sock in enumerate(clients):
            try:
                sock.settimeout(5)
                data = sock.recv(512)
            except TimeoutError:  # the kernel may drop some: DNS asks again
                sock.settimeout(LIMIT)
                data = ask(sock, question(number), server.address)
            assert int.from_bytes(data[:2], "big") == number
            assert data.endswith(ADDRESS)


def test_two_hundred_connections(server: Server) -> None:
    """Of TCP, each with three questions in one piece, or in many."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(200)]
        for number, sock in enumerate(clients):
            stream = b"".join(
                len(message).to_bytes(2, "big") + message
                for message in (question(number), question(number + 1), question(number + 2))
            )
            for part in [stream] if number % 10 else [stream[at : at + 7] for at in range(0, len(stream), 7)]:
                sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)
        for number, sock in enumerate(clients):
            received = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))  # type: ignore[misc]  # mypy: lambda
            for after in range(3):
                length = int.from_bytes(received[:2], "big")
                message, received = received[2 : 2 + length], received[2 + length :]
                assert int.from_bytes(message[:2], "big") == number + after
                assert message.endswith(ADDRESS)
            assert received == b""


def test_what_is_no_dns(server: Server) -> None:
    """Noise, pieces of questions, lies about lengths, answers: it goes on answering those who ask."""
    chance = random.Random(1)
    good = question(7)
    with ExitStack() as stack:
        noisy, polite = client(stack), client(stack)
        for _ in range(300):
            size = chance.randrange(len(good))
            changed = bytearray(good)
            changed[chance.randrange(len(good))] = chance.randrange(256)
            for noise in (good[:size], chance.randbytes(size), bytes(changed), good + chance.randbytes(size), b""):
                noisy.sendto(noise, server.address)
            assert ask(polite, question(1), server.address).endswith(ADDRESS)
        malformed = HEADER.pack(5, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1"  # a name that refers to itself
        fresh = client(stack)
        assert ask(fresh, malformed, server.address)[3] & 0xF == 1, "FORMERR"
        fresh.sendto(HEADER.pack(6, 0x8000, 1, 0, 0, 0) + good[12:], server.address)
        assert ask(fresh, question(8), server.address)[:2] == b"\0\x08", "what is an answer is not answered"


def test_what_is_no_dns_by_tcp(server: Server) -> None:
    with server.client() as noisy:
        noisy.sendall(b"GET / HTTP/1.1\r\n\r\n" * 2000)
        noisy.shutdown(socket.SHUT_WR)
        try:
            while noisy.recv(65536):
                pass
        except ConnectionResetError:
            pass
    with server.client() as empty:
        empty.sendall(b"\0\0")
        assert empty.recv(9) == b"", "a message of no bytes ends it"
    assert short(server, "+tcp", "www.example.test") == ["192.0.2.80"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
def test_a_signal_stops_it(server: Server, by: signal.Signals) -> None:
    with ExitStack() as stack, server.client() as connected:
        ask(client(stack), question(1), server.address)
        connected.sendall(b"\0")
        assert server.stop(by) == (0, "")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("example.test A 192.0.2.1", "a zone has one SOA"),
        ("example.test MX 10 mail.example.test", "not a record of this server"),
        ("example.test A 2001:db8::1", "not a record of this server"),
        ("example.test", "not a record of this server"),
    ],
)
def test_a_wrong_zone_is_told(tmp_path: Path, line: str, complaint: str) -> None:
    zone = tmp_path / "zone"
    zone.write_text(line, encoding="utf-8")
    complaints = output_of_failure("examples.dns_server", "--zone", str(zone))
    assert complaints.startswith("cannot serve: ")
    assert complaint in complaints
