"""What a peer may send: how many packets, from how many sources, how much that is never finished.

A peer whose offer was answered may send anything through its encrypted connection, and every packet costs this process
time and memory. Packets beyond a rate limit are dropped and counted; a peer that goes on is disconnected. Correct peers
stay far below these limits, also when a stalled network delivers all packets at once. Pure bookkeeping: time comes from
a clock that is given, packets are numbers here.
"""

from __future__ import annotations

from collections.abc import Callable

from echo_rtc.rtc.packets import MAX_EXTENSION_BYTES, MAX_REPORTS
from echo_rtc.stream.counters import GuardCounters
from echo_rtc.token_bucket import TokenBucket

PACKETS_PER_S, PACKETS_BURST = 500.0, 500.0
"""Media packets; a microphone sends 50 a second, 400 with the shortest packets that Opus has."""
REPORTS_PER_S, REPORTS_BURST = 200.0, 400.0
"""RTCP packets; a browser under heavy loss sends about 50 a second."""
DATA_PER_S, DATA_BURST = 200.0, 400.0
"""Packets of data channels, from which the server reads messages of a few bytes."""
CHUNKS_PER_S, CHUNKS_BURST = 500.0, 1_000.0
"""SCTP chunks in these packets."""
CHANNELS_PER_S, CHANNELS_BURST = 0.2, 16.0
"""Data channels that are opened; a page needs one."""
CONTROLS_PER_S, CONTROLS_BURST = 10.0, 20.0
"""Messages that control the stream; a person presses a button now and then."""
MAX_INITS = 20
"""Attempts at an association of data channels; a correct peer repeats one eight times at most."""
DATAGRAMS_PER_S, DATAGRAMS_BURST = 2_000.0, 4_000.0
"""Datagrams of any kind, before they are decrypted."""
RESENDS_PER_S, RESENDS_BURST = 500.0, 500.0
"""Media packets that are sent again because the peer says that they were lost; a report may name thousands."""
PATIENCE_PER_S, PATIENCE = 200.0, 3_000.0
"""Packets over a rate limit that are dropped before the peer is disconnected."""
MAX_SOURCES = 16
"""SSRCs of a peer over its whole life; each takes memory for ever. A call has two or three."""
MAX_UNFINISHED_BYTES = 512 * 1024
"""Bytes of incomplete data channel messages that may be buffered. The largest message allowed is half of it."""


class Guard:
    """Watches what one peer sends. ``send_away`` is called with the reason, once, when it is enough; ``counters`` may
    be shared with other peers of the stream."""

    def __init__(
        self, send_away: Callable[[str], None], clock: Callable[[], float], counters: GuardCounters | None = None
    ) -> None:
        now = clock()
        self._send_away = send_away
        self._clock = clock
        self._packets = TokenBucket(PACKETS_PER_S, PACKETS_BURST, now)
        self._reports = TokenBucket(REPORTS_PER_S, REPORTS_BURST, now)
        self._data = TokenBucket(DATA_PER_S, DATA_BURST, now)
        self._chunks = TokenBucket(CHUNKS_PER_S, CHUNKS_BURST, now)
        self._controls = TokenBucket(CONTROLS_PER_S, CONTROLS_BURST, now)
        self._channels = TokenBucket(CHANNELS_PER_S, CHANNELS_BURST, now)
        self._datagrams = TokenBucket(DATAGRAMS_PER_S, DATAGRAMS_BURST, now)
        self._inits = 0
        self._resends = TokenBucket(RESENDS_PER_S, RESENDS_BURST, now)
        self._patience = TokenBucket(PATIENCE_PER_S, PATIENCE, now)
        self._sources: set[int] = set()
        self._sent_away = False
        self.counters = counters or GuardCounters()

    @property
    def is_open(self) -> bool:
        """Whether the peer has not been sent away."""
        return not self._sent_away

    def datagram(self) -> bool:
        """Whether a datagram that the peer may have sent is looked at."""
        return not self._sent_away and self._datagrams.take(1, self._clock()) == 1

    def datagram_refused(self) -> None:
        """Counts a datagram from an unknown sender that was dropped."""
        self.counters.datagrams_refused += 1

    def packet(self, source: int, extension_bytes: int = 0) -> bool:
        """Whether a media packet of this SSRC, with header extensions of this length, is taken."""
        if self._sent_away:
            return False
        if source not in self._sources:
            if len(self._sources) >= MAX_SOURCES:
                self.counters.packets_refused += 1
                self._enough(f"it sent from more than {MAX_SOURCES} sources")
                return False
            self._sources.add(source)
        taken = self._take(self._packets) and extension_bytes <= MAX_EXTENSION_BYTES
        self.counters.packets_refused += not taken
        return taken

    def report(self, packets: int = 1) -> bool:
        """Whether a compound of this many RTCP packets is taken."""
        taken = self._take(self._reports, max(1, packets)) and packets <= MAX_REPORTS
        self.counters.reports_refused += not taken
        return taken

    def data(self, chunks: int = 1, opens: int = 0, begins: bool = False) -> bool:
        """Whether a packet of the data channels is taken, which has this many SCTP chunks, opens this many channels and
        perhaps begins an association."""
        taken = self._take(self._data) and self._take(self._chunks, chunks)
        self._inits += begins
        if taken and opens and self._channels.take(opens, self._clock()) < opens:
            self._enough("it opened far too many data channels")
            taken = False
        elif taken and self._inits > MAX_INITS:
            self._enough("it began its data channels' association far too often")
            taken = False
        self.counters.data_refused += not taken
        return taken

    def control(self) -> bool:
        """Whether a message on a data channel is looked at."""
        taken = not self._sent_away and self._controls.take(1, self._clock()) == 1
        self.counters.controls_refused += not taken
        return taken

    def hostile(self, what: str) -> None:
        """The peer has sent what no honest one sends."""
        self.counters.data_refused += 1
        self._enough(f"it sent {what}")

    def resends(self, wanted: int) -> int:
        """How many of ``wanted`` packets are sent again."""
        granted = self._resends.take(wanted, self._clock())
        self.counters.resends_refused += wanted - granted
        return granted

    def unfinished(self, size: int) -> None:
        """``size`` bytes of messages whose end has not come are kept now."""
        if size > MAX_UNFINISHED_BYTES:
            self._enough(f"it left more than {MAX_UNFINISHED_BYTES // 1024} KiB of messages unfinished")

    def fault(self, what: str) -> None:
        """A packet broke the code that handles ``what``, whose state cannot be trusted any more."""
        self.counters.faults += 1
        self._enough(f"it sent {what} that cannot be handled")

    def _take(self, bucket: TokenBucket, tokens: int = 1) -> bool:
        """Takes ``tokens``, or as many as there are; whether there were enough."""
        if self._sent_away:
            return False
        now = self._clock()
        missing = tokens - bucket.take(tokens, now)
        if not missing:
            return True
        if self._patience.take(missing, now) < missing:
            self._enough("it sent far too many packets")
        return False

    def _enough(self, reason: str) -> None:
        if not self._sent_away:
            self._sent_away = True
            self.counters.sent_away += 1
            self._send_away(f"the peer was sent away: {reason}")
