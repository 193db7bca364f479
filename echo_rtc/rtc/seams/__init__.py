"""Every reach into aiortc and aioice beyond what they document, one subject a file.

These things cannot be had otherwise: a short jitter buffer for the microphone (``jitter``); tracks that hand out ready
packets, and key-frame requests, bitrate estimates and sender reports for them (``sending``, ``feedback``); losing a
vanished peer within seconds, not waiting long for an unreachable STUN or TURN server (``ice``); UDP ports of a range
(``ports``); and limits to what unknown senders and peers may send (``guarding``, ``sctp``, ``ice``). Every reach is
checked: if a library has changed, ``checks.SeamError`` says which attribute is gone. Nothing here knows streams.
"""
