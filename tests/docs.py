"""The pages of the documentation, and the tables in them that are generated from the code.

``python -m tests.docs --write`` rewrites the generated tables in place; ``tests/test_docs.py`` compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from echo_rtc.settings import flag_table
from echo_rtc.web.app import routes
from echo_rtc.web.auth import Scope
from echo_rtc.web.metrics import ServerCollector, Watch, Watched
from tests.web.conftest import FakeEngine, FakeStreams

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
"""Every page of ``docs/`` by its name without the ending."""


def page(name: str) -> str:
    """The text of a page of ``docs/``; of README.md for ``README``, of CONTRIBUTING.md for ``CONTRIBUTING``."""
    path = PAGES.get(name, ROOT / f"{name}.md")
    return path.read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """The text below a heading of a page, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", page(name), re.MULTILINE | re.DOTALL)
    assert found, f"the page {name} has no section {title}"
    return found[1]


def table(name: str, title: str) -> list[list[str]]:
    """The rows of a section's first table without its head, cells as they are written."""
    rows = [line.strip("|").split("|") for line in section(name, title).splitlines() if line.startswith("|")]
    assert len(rows) > 2, f"the section {title} of {name} has no table"
    return [[cell.strip() for cell in row] for row in rows[2:] if row]


def flag_rows() -> list[list[str]]:
    """Flag, default with its unit, and meaning, in the order of ``--help``."""
    return [
        [f"`{row.flag}`", f"`{row.default}`{f' {row.unit}' if row.unit else ''}", row.meaning] for row in flag_table()
    ]


def route_rows() -> list[list[str]]:
    """Method, path, scope of the token and meaning of each route."""
    return [[row.method, f"`{row.path}`", str(row.scope), row.meaning] for row in routes()]


def scope_rows() -> list[list[str]]:
    """Each scope, and the routes that ask for it."""
    asked = {scope: [row for row in routes() if row.scope is scope] for scope in Scope}
    return [
        [f"`{scope}`", ", ".join(f"`{row.method} {row.path}`" for row in rows)] for scope, rows in asked.items() if rows
    ]


def metric_rows() -> list[list[str]]:
    """Name, kind, labels and meaning of each metric, in the order of ``GET /metrics``."""
    families = list(ServerCollector(Watched(FakeStreams(), FakeEngine(), "local", Watch())).collect())
    return [
        [
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            ", ".join(f"`{label}`" for label in family._labelnames),  # type: ignore[attr-defined]
            family.documentation,
        ]
        for family in families
    ]


GENERATED: dict[tuple[str, str], Callable[[], list[list[str]]]] = {
    ("configuration", "Flags"): flag_rows,
    ("http-api", "Routes"): route_rows,
    ("security", "What a token opens"): scope_rows,
    ("metrics", "Metrics"): metric_rows,
}
"""Tables that follow from the code, by page and section."""


def rewritten(name: str, title: str, rows: list[list[str]]) -> str:
    """The page's text with the rows of a section's first table replaced; its head stays."""
    text = page(name)
    old = section(name, title)
    [block] = re.findall(r"(?:^\|.*\n)+", old, re.MULTILINE)[:1]
    head = block.splitlines()[:2]
    new = "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
    return text.replace(old, old.replace(block, new))


def main(arguments: list[str]) -> int:
    """Rewrites the generated tables with ``--write``; the exit code is 2 for anything else."""
    if arguments != ["--write"]:
        sys.stderr.write("use: python -m tests.docs --write\n")
        return 2
    for (name, title), rows in GENERATED.items():
        PAGES[name].write_text(rewritten(name, title, rows()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
