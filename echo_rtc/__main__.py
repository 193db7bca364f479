"""``python -m echo_rtc``: the command line, which is in ``cli``."""

from __future__ import annotations

import sys

from echo_rtc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
