"""The figures of the README, each made by one command: ``python -m echo_rtc.bench NAME``."""
