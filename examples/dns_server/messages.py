"""A zone, and the answers to questions about it, as bytes: nothing here does I/O. RFC 1035, EDNS of RFC 6891."""

import socket
import struct
from collections.abc import Iterator

TTL = 300  # seconds
TYPES = {"A": 1, "NS": 2, "SOA": 6, "TXT": 16, "AAAA": 28}
OPT, ANY, IN = 41, 255, 1
RESPONSE, AUTHORITATIVE, TRUNCATED, RECURSION_DESIRED = 0x8000, 0x0400, 0x0200, 0x0100
NOERROR, FORMERR, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 3, 4, 5, 16
HEADER, RECORD = struct.Struct("!6H"), struct.Struct("!HHIH")
LARGEST_UDP = 1232  # bytes that pass everywhere in one piece, whatever the client would take


class Malformed(ValueError):
    """A message that is none."""


# --- the zone -------------------------------------------------------------------------------------------------


def encoded(name: str) -> bytes:
    """A name as a message has it."""
    labels = [label.encode("ascii") for label in name.lower().rstrip(".").split(".") if label]
    if any(len(label) > 63 for label in labels):
        raise ValueError(f"a label of {name!r} has more than 63 bytes")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def record_data(kind: str, value: str) -> bytes:
    if kind in ("A", "AAAA"):
        return socket.inet_pton(socket.AF_INET if kind == "A" else socket.AF_INET6, value)
    if kind == "NS":
        return encoded(value)
    if kind == "SOA":
        server, mailbox, *numbers = value.split()
        return encoded(server) + encoded(mailbox) + struct.pack("!5I", *map(int, numbers))
    text = value.encode()
    return b"".join(bytes([len(part)]) + part for part in (text[at : at + 255] for at in range(0, len(text), 255)))


class Zone:
    """Names, each with its records: type -> data."""

    def __init__(self, text: str) -> None:
        self.names: dict[bytes, dict[int, list[bytes]]] = {}
        for line in filter(str.strip, text.splitlines()):
            try:
                name, kind, value = line.split(maxsplit=2)
                self.names.setdefault(encoded(name), {}).setdefault(TYPES[kind], []).append(record_data(kind, value))
            except (KeyError, ValueError, OSError, struct.error) as error:
                raise ValueError(f"not a record of this server: {line!r} ({error})") from error
        origins = [found for found, records in self.names.items() if TYPES["SOA"] in records]
        if len(origins) != 1:
            raise ValueError("a zone has one SOA")
        self.origin = origins[0]
        for below in list(self.names):
            above = below
            while above.endswith(self.origin) and above != self.origin:
                above = above[above[0] + 1 :]
                self.names.setdefault(above, {})  # it exists where one below it does, though it has no records

    def soa(self) -> bytes:
        return record(self.origin, TYPES["SOA"], self.names[self.origin][TYPES["SOA"]][0])


def record(name: bytes, kind: int, data: bytes) -> bytes:
    return name + RECORD.pack(kind, IN, TTL, len(data)) + data


# --- messages -------------------------------------------------------------------------------------------------


def end_of_name(message: bytes, at: int, may_refer: bool) -> int:
    """Where the name that begins there ends. `may_refer`: to one that stands before it."""
    begin = at
    while at < len(message) and at - begin < 255:
        length = message[at]
        at += 1 + length
        if length == 0:
            return at
        if length >= 0xC0 and may_refer:
            return at - length + 1
        if length > 63:
            break
    raise Malformed


def additional(message: bytes, at: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Type, class and TTL of each record behind the question."""
    for _ in range(count):
        at = end_of_name(message, at, may_refer=True)
        if at + RECORD.size > len(message):
            raise Malformed
        kind, kind_of_net, ttl, length = RECORD.unpack_from(message, at)
        at += RECORD.size + length
        if at > len(message):
            raise Malformed
        yield kind, kind_of_net, ttl


def answer(zone: Zone, message: bytes, largest: int) -> bytes | None:
    """The answer to a message, of no more than so many bytes over UDP; None where there is none to give."""
    if len(message) < HEADER.size:
        return None
    number, flags, questions, *others = HEADER.unpack_from(message)
    if flags & RESPONSE:
        return None  # or two servers would talk to each other for ever
    flags = RESPONSE | (flags & 0x7800) | (flags & RECURSION_DESIRED)
    if flags & 0x7800:
        return HEADER.pack(number, flags | NOTIMP, 0, 0, 0, 0)
    try:
        if questions != 1:
            raise Malformed
        end = end_of_name(message, HEADER.size, may_refer=False) + 4
        if end > len(message):
            raise Malformed
        options = [found for found in additional(message, end, sum(others)) if found[0] == OPT]
        if len(options) > 1:
            raise Malformed
    except Malformed:
        return HEADER.pack(number, flags | FORMERR, 0, 0, 0, 0)

    question = message[HEADER.size : end]
    code, answers, authority = look_up(zone, question[:-4].lower(), *struct.unpack("!HH", question[-4:]))
    extra = []
    if options:
        _, size, ttl = options[0]
        largest = max(largest, min(size, LARGEST_UDP))
        if ttl >> 16 & 0xFF:  # a later version of EDNS
            code, answers, authority = BADVERS, [], []
        extra = [b"\0" + RECORD.pack(OPT, LARGEST_UDP, code >> 4 << 24, 0)]
    if code in (NOERROR, NXDOMAIN):
        flags |= AUTHORITATIVE
    size = HEADER.size + sum(map(len, (question, *answers, *authority, *extra)))
    if size > largest:
        flags, answers, authority = flags | TRUNCATED, [], []
    counts = (1, len(answers), len(authority), len(extra))
    return HEADER.pack(number, flags | code & 0xF, *counts) + question + b"".join((*answers, *authority, *extra))


def look_up(zone: Zone, name: bytes, kind: int, kind_of_net: int) -> tuple[int, list[bytes], list[bytes]]:
    """The code, the answers, and what stands in place of answers."""
    labels = name
    while labels != zone.origin and len(labels) > 1:
        labels = labels[labels[0] + 1 :]
    if labels != zone.origin or kind_of_net not in (IN, ANY):
        return REFUSED, [], []
    records = zone.names.get(name)
    if records is None:
        return NXDOMAIN, [], [zone.soa()]
    kinds = records if kind == ANY else [kind]
    same_name = struct.pack("!H", 0xC000 | HEADER.size)  # as in the question
    answers = [record(same_name, found, data) for found in kinds for data in records.get(found, ())]
    return NOERROR, answers, [] if answers else [zone.soa()]
