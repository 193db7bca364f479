"""What a packet would cost to handle: STUN, RTP, RTCP and SCTP, by their headers alone.

aiortc validates no field: one chunk of 1.2 KB can make it loop 2**32 times, or for ever. Packets that no correct peer
sends are found here in time linear in the packet's length. Pure: bytes in, facts out; holds no connection.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from struct import unpack_from

MAX_STUN_BYTES = 1_024
MAX_STUN_ATTRIBUTES = 24
"""A connectivity check has six or seven."""
MAX_EXTENSION_BYTES = 256
"""Of an RTP packet's header extensions."""
MAX_REPORTS = 16
"""RTCP packets in one datagram; a browser sends three or four."""

MAX_CHUNKS = 64
"""SCTP chunks in one packet. As many small messages fit into one."""
MAX_PARAMETERS = 16
"""Parameters of one SCTP chunk."""
MAX_RESETS = 2
"""Parameters of a RE-CONFIG chunk (RFC 6525, 3.1)."""
MAX_GAPS = 64
"""Gap blocks of one acknowledgement (SACK)."""
MAX_AHEAD = 1_024
"""How far a chunk's number may be ahead of the last one before a gap."""
MAX_MISORDERED = 256
"""Chunks that may wait for one before them."""
MAX_STREAMS = 64
"""SCTP streams that a peer may use; each data channel has one."""
MAX_WAITING = 320
"""Chunks that may wait for the rest of their message. The largest message allowed comes in 224."""
MAX_FRAGMENTS = 4
"""Pieces of messages in one packet, which holds the end of one and the beginning of the next."""

_MAGIC = b"\x21\x12\xa4\x42"
_HEADER, _CHUNK_HEADER, _DATA_HEADER = 12, 4, 16
_DATA, _INIT, _INIT_ACK, _SACK, _RECONFIG, _FORWARD_TSN = 0, 1, 2, 3, 130, 192
_WHOLE = 0b11
"""The flags of a chunk that is a whole message."""
_DCEP, _OPEN = 50, 3
_PARAMETERS_AT: Mapping[int, int] = {_INIT: 16, _INIT_ACK: 16, 4: 0, 5: 0, 6: 0, 9: 0, _RECONFIG: 0}
"""Chunks that hold parameters or causes, and where in their bodies these begin."""
_SHORTEST: Mapping[int, int] = {_DATA: 13, _INIT: 16, _INIT_ACK: 16, _SACK: 12, 7: 4, _FORWARD_TSN: 4}
"""The least bytes of a chunk's body."""


class HostilePacketError(Exception):
    """What no honest peer sends; the message says what, as the end of "it sent ..."."""


# STUN, RTP and RTCP


def is_stun(data: bytes) -> bool:
    """Whether a datagram is a STUN message (RFC 7983)."""
    return len(data) >= 20 and data[0] < 4 and data[4:8] == _MAGIC


def stun_is_short(data: bytes) -> bool:
    """Whether a STUN message has the size and the number of attributes that ICE needs."""
    if len(data) > MAX_STUN_BYTES:
        return False
    at, attributes = 20, 0
    while at + 4 <= len(data):
        at += 4 + (int.from_bytes(data[at + 2 : at + 4], "big") + 3) // 4 * 4
        attributes += 1
        if attributes > MAX_STUN_ATTRIBUTES:
            return False
    return True


def rtp_extension_bytes(data: bytes) -> int:
    """The length of an RTP packet's header extensions (RFC 3550, 5.3.1); 0 where it has none."""
    if len(data) < 12 or not data[0] & 0x10:
        return 0
    at = 12 + 4 * (data[0] & 0x0F)
    return 4 * int.from_bytes(data[at + 2 : at + 4], "big")


def rtcp_packets(data: bytes) -> int:
    """How many packets a compound RTCP packet holds (RFC 3550, 6.1), as far as it is well formed."""
    at, count = 0, 0
    while at + 4 <= len(data):
        at += 4 + 4 * int.from_bytes(data[at + 2 : at + 4], "big")
        count += 1
    return count


# SCTP


@dataclass(frozen=True, slots=True)
class Association:
    """What an SCTP association holds as a packet arrives. ``received``: the last chunk number (TSN) before a gap, None
    before the association; ``misordered``: how many came after it; ``next_sent``: the number of the next chunk that we
    send; ``streams``: those that the peer has used; ``waiting``: chunks whose message is not complete."""

    received: int | None
    misordered: int
    next_sent: int
    streams: Collection[int]
    waiting: int


@dataclass(slots=True)
class SctpPacket:
    """``chunks``: how many it has; ``opens``: data channels that it opens; ``begins``: whether it begins an
    association."""

    chunks: int = 0
    opens: int = 0
    begins: bool = False
    fragments: int = 0
    kinds: set[int] = field(default_factory=set)
    streams: set[int] = field(default_factory=set)


def read_sctp(data: bytes, association: Association) -> SctpPacket:
    """Looks a packet through (RFC 9260). Raises HostilePacketError where it would cost more than it may."""
    packet = SctpPacket()
    at = _HEADER
    while at + _CHUNK_HEADER <= len(data):
        kind, flags, length = unpack_from("!BBH", data, at)
        if length < _CHUNK_HEADER or at + length > len(data):
            raise HostilePacketError("an SCTP chunk whose length is wrong")
        packet.chunks += 1
        if packet.chunks > MAX_CHUNKS:
            raise HostilePacketError(f"more than {MAX_CHUNKS} SCTP chunks in one packet")
        _look_at(packet, kind, flags, data[at + _CHUNK_HEADER : at + length], association)
        at += (length + 3) // 4 * 4
    if packet.begins and packet.chunks > 1:
        raise HostilePacketError("an SCTP INIT beside other chunks")
    if len(packet.streams.union(association.streams)) > MAX_STREAMS:
        raise HostilePacketError(f"messages on more than {MAX_STREAMS} SCTP streams")
    if packet.fragments > MAX_FRAGMENTS or packet.fragments + association.waiting > MAX_WAITING:
        raise HostilePacketError("too many pieces of messages that are never complete")
    return packet


def _look_at(packet: SctpPacket, kind: int, flags: int, body: bytes, association: Association) -> None:
    if len(body) < _SHORTEST.get(kind, 0):
        raise HostilePacketError("an SCTP chunk that is cut off")
    if kind == _DATA:
        _look_at_data(packet, flags, body, association)
        return
    if kind in packet.kinds:
        raise HostilePacketError("the same SCTP control chunk twice in one packet")
    packet.kinds.add(kind)
    packet.begins |= kind == _INIT
    if kind in _PARAMETERS_AT:
        parameters = _parameters(body[_PARAMETERS_AT[kind] :])
        if kind == _RECONFIG:
            _look_at_resets(parameters)
    if kind == _SACK:
        _look_at_acknowledgement(body, association)
    elif kind == _FORWARD_TSN:
        _look_at_forward(packet, body, association)


def _look_at_data(packet: SctpPacket, flags: int, body: bytes, association: Association) -> None:
    number, stream, _, protocol = unpack_from("!LHHL", body)
    _require_near(number, association)
    if association.misordered > MAX_MISORDERED:
        raise HostilePacketError("SCTP chunks with too many gaps between them")
    packet.streams.add(stream)
    packet.fragments += flags & _WHOLE != _WHOLE
    packet.opens += protocol == _DCEP and body[12] == _OPEN


def _look_at_acknowledgement(body: bytes, association: Association) -> None:
    acknowledged, _, gaps, duplicates = unpack_from("!LLHH", body)
    if len(body) != 12 + 4 * (gaps + duplicates):
        raise HostilePacketError("an SCTP acknowledgement whose length is wrong")
    if gaps > MAX_GAPS:
        raise HostilePacketError(f"an SCTP acknowledgement with more than {MAX_GAPS} gaps")
    outstanding = (association.next_sent - 1 - acknowledged) % 2**32
    if outstanding >= 2**31:
        raise HostilePacketError("an SCTP acknowledgement of what was not sent")
    end = 0
    for i in range(gaps):
        start, next_end = unpack_from("!HH", body, 12 + 4 * i)
        if not end < start <= next_end or next_end > outstanding:
            raise HostilePacketError("an SCTP acknowledgement of what was not sent, or out of order")
        end = next_end


def _look_at_forward(packet: SctpPacket, body: bytes, association: Association) -> None:
    _require_near(unpack_from("!L", body)[0], association)
    if len(body) % 4 or len(body) > 4 + 4 * MAX_STREAMS:
        raise HostilePacketError("an SCTP FORWARD TSN whose length is wrong")
    packet.streams.update(unpack_from("!H", body, at)[0] for at in range(4, len(body), 4))


def _look_at_resets(parameters: list[tuple[int, bytes]]) -> None:
    if len(parameters) > MAX_RESETS:
        raise HostilePacketError(f"an SCTP RE-CONFIG of more than {MAX_RESETS} parameters")
    for kind, value in parameters:
        shortest = {13: 12, 16: 8, 17: 8}.get(kind, 0)
        if len(value) < shortest or (kind == 13 and (len(value) % 2 or len(value) > 12 + 2 * MAX_STREAMS)):
            raise HostilePacketError("an SCTP RE-CONFIG whose length is wrong")


def _parameters(body: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at + 4 <= len(body):
        kind, length = unpack_from("!HH", body, at)
        if length < 4 or at + length > len(body):
            raise HostilePacketError("an SCTP parameter whose length is wrong")
        found.append((kind, body[at + 4 : at + length]))
        if len(found) > MAX_PARAMETERS:
            raise HostilePacketError(f"an SCTP chunk of more than {MAX_PARAMETERS} parameters")
        at += (length + 3) // 4 * 4
    return found


def _require_near(number: int, association: Association) -> None:
    """A chunk's number is one that came already, or not far ahead."""
    if association.received is None:
        raise HostilePacketError("SCTP data before an association")
    ahead = (number - association.received) % 2**32
    if MAX_AHEAD < ahead < 2**31:
        raise HostilePacketError("an SCTP chunk far ahead of the others")
