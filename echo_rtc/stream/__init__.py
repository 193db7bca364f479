"""A live stream between its voice and its viewers. asyncio; no aiortc, no aiohttp."""
