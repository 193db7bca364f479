"""Media bookkeeping in numpy: clip cutting, speech gate, overlap blend, playout. No sockets, no torch, no asyncio; time
is an argument.

A stream's microphone blocks go through ``timeline`` (contiguous media time) to ``playout`` (the delay line) and through
``clipper`` and ``gate`` to the engine, whose frames come back to ``playout``.
"""
