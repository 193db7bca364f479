"""``python server.py``: the server from a checkout, as ``echo-rtc serve`` starts it from an installation."""

from __future__ import annotations

import sys

from echo_rtc.cli.serve import main

if __name__ == "__main__":
    sys.exit(main(prog="server.py"))
