"""Frames and sound to packets and back. PyAV and NumPy; no asyncio, no aiortc."""
