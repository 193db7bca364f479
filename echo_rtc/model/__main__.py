"""``python -m echo_rtc.model convert``, which is also ``echo-rtc convert``."""

from __future__ import annotations

import sys

from echo_rtc.model.convert import main

if __name__ == "__main__":
    if sys.argv[1:2] != ["convert"]:
        sys.exit("usage: python -m echo_rtc.model convert --weights FOLDER --output FOLDER; see --help of convert")
    sys.exit(main(sys.argv[2:]))
