"""Rendering a file's voice to a movie, and several of them as a batch. No network."""
