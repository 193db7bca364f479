"""How the embedded model was made: rendered people, synthetic speech, and the training of its parts.

Nothing else in the package imports this room. ``python -m echo_rtc.train`` lists its commands.
"""
