"""echo_rtc: a WebRTC media server that turns a voice into its talking face, live."""

from echo_rtc.resources import VERSION as __version__

__all__ = ["__version__"]
