"""Recordings of streams: files on disk, made of the packets that viewers get."""
