"""Text to speech: sentences of a text, and the programs and servers that say them. Knows no streams and no routes."""
