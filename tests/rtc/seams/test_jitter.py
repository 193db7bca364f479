"""The microphone's jitter buffer: what is lost on the way is lost, and nothing else."""

from __future__ import annotations

import asyncio
import random

import av
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpreceiver import RemoteStreamTrack
from aiortc.rtp import RtpPacket

from echo_rtc.clips import S16Array
from echo_rtc.codec.concealment import VoiceDecoder
from echo_rtc.codec.sound import SoundEncoder
from echo_rtc.rtc.seams.jitter import (
    MicrophoneFrame,
    MicrophoneJitterBuffer,
    decode_microphone,
    shorten_microphone_buffer,
)


def packet(number: int, payload: bytes = b"x") -> RtpPacket:
    made = RtpPacket(payload_type=96, sequence_number=number % 65536, timestamp=number * 960, payload=payload)
    made._data = payload  # type: ignore[attr-defined]  # what aiortc's receiver adds before the buffer
    return made


def latency(buffer: JitterBuffer, numbers: list[int]) -> list[int]:
    """How many packets behind the one put in each frame comes out."""
    lags = []
    for number in numbers:
        _, frame = buffer.add(packet(number))
        if frame is not None:
            lags.append(number - frame.timestamp // 960)
    return lags


def test_the_buffer_holds_two_packets_after_a_loss_else_none() -> None:
    stock = JitterBuffer(capacity=16, prefetch=4)
    whole, lossy = list(range(50)), [n for n in range(100, 150) if n != 110]
    assert set(latency(stock, whole)) == {4}
    assert set(latency(MicrophoneJitterBuffer(), whole)) == {0}
    assert set(latency(MicrophoneJitterBuffer(), lossy)) == {0, 2}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_only_what_the_network_lost_is_lost(share: float) -> None:
    chance = random.Random(5)
    sent = [n for n in range(65_000, 75_000) if chance.random() >= share]
    # A packet may overtake the two before it.
    arriving = sorted(sent, key=lambda n: n + chance.random() * 2)
    buffer = MicrophoneJitterBuffer()
    came = [frame.timestamp // 960 for _, frame in (buffer.add(packet(n)) for n in arriving) if frame is not None]
    assert came == sorted(set(came))
    assert set(came) <= set(sent)
    # At 30 % a packet that is late may find its place given up: three have come that were after it.
    assert len(sent) - len(came) <= 3 + len(sent) * share**3 * 2


def test_late_double_and_restarted_packets_do_no_harm() -> None:
    buffer = MicrophoneJitterBuffer()
    numbers = [10, 11, 11, 9, 12, 13, 13, 400, 399, 401, 5, 6, 5, 7, 8]
    came = [frame.timestamp // 960 for _, frame in (buffer.add(packet(n)) for n in numbers) if frame is not None]
    assert came == [10, 11, 12, 13, 400, 401, 5, 6, 7, 8]
    assert len(buffer._held) == 0


def test_a_packet_without_payload_does_not_reach_a_decoder() -> None:
    decoder = OpusDecoder()
    sound = bytes(SoundEncoder().encode(np.zeros(960, np.int16), 0))
    assert decoder.decode(JitterFrame(sound, 0))
    decoder.decode(JitterFrame(b"", 960))
    with pytest.raises(av.FFmpegError):
        decoder.decode(JitterFrame(sound, 1920))
    buffer = MicrophoneJitterBuffer()
    frames = [buffer.add(packet(n, b"" if n == 5 else b"x"))[1] for n in range(20)]
    assert sum(frame is not None for frame in frames) >= 14
    assert all(frame.data for frame in frames if frame is not None)


async def test_the_receivers_buffer_is_replaced() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = connection.addTransceiver("audio").receiver
    shorten_microphone_buffer(receiver)
    assert isinstance(getattr(receiver, "_RTCRtpReceiver__jitter_buffer"), MicrophoneJitterBuffer)  # noqa: B009
    await connection.close()


def test_a_packet_says_how_many_are_lost_before_it() -> None:
    buffer = MicrophoneJitterBuffer()
    numbers = [n for n in range(20) if n not in (5, 9, 10)]
    came = [frame for _, frame in (buffer.add(packet(n)) for n in [*numbers, 3_000, 3_001]) if frame is not None]
    lost = {frame.timestamp // 960: frame.lost for frame in came if isinstance(frame, MicrophoneFrame) and frame.lost}
    assert {n: count for n, count in lost.items() if n < 20} == {6: 1, 11: 2}


class Scripted(VoiceDecoder):
    """Decodes every packet to silence, and one to an error."""

    def __init__(self) -> None:
        self.lost: list[int] = []

    def decode(self, packet: bytes, pts: int, lost: int = 0) -> list[tuple[int, S16Array]]:
        self.lost.append(lost)
        if packet == b"broken":
            raise ValueError("broken")
        return [(pts, np.zeros(960, np.int16))]


async def test_the_microphone_is_decoded_on_aiortcs_thread() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = connection.addTransceiver("audio").receiver
    receiver._track = RemoteStreamTrack("audio")
    decoder = Scripted()
    decode_microphone(receiver, decoder)
    packets = getattr(receiver, "_RTCRtpReceiver__decoder_queue")  # noqa: B009
    for number, data in enumerate((b"x", b"broken", b"x")):
        frame = MicrophoneFrame(data, number * 960)
        frame.lost = number
        packets.put((None, frame))
    packets.put(None)
    assert await asyncio.to_thread(packets.get) is None
    frames = [await receiver.track.recv() for _ in range(2)]
    assert [frame.pts for frame in frames] == [0, 1_920]
    assert decoder.lost == [0, 1, 2]
    await connection.close()
