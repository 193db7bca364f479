"""An avatar as a participant of a LiveKit room: speech of an agent in, picture and sound out. No aiortc, no torch."""
