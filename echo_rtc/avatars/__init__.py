"""Avatars on disk: the library that holds them, and the checks of what is uploaded."""
