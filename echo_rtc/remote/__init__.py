"""A face of an echo_rtc server elsewhere, for Python programs: pushed by its speech channel, seen by WHEP."""
