"""echo_rtc: a WebRTC media server that turns a voice into its talking face, live."""

__version__ = "0.1.0"
