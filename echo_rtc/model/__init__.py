"""The model room: EchoMimic-V2's networks, their weights and conditioning, and the generator of clips.

Torch is loaded here and nowhere else in the server, inside worker processes only. Knows no WebRTC and no HTTP.
"""
