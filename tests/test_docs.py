"""The documentation against the code: tables, commands, paths and quoted words are those of this repository, and the
script for other pages makes a call in a browser.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.async_api import Route, async_playwright

from echo_rtc.avatars.library import MAX_PICTURE_BYTES, MAX_POSES_BYTES
from echo_rtc.bench.__main__ import BENCHMARKS
from echo_rtc.cli import main as command_line
from echo_rtc.cli.render import LIVE_ONLY
from echo_rtc.settings import Settings, flag_table, load_settings, read_config
from echo_rtc.stream.counters import StreamCounters
from echo_rtc.stream.events import EventType
from echo_rtc.stream.snapshot import Snapshot
from echo_rtc.stream.stream import StreamState
from echo_rtc.stream.sync import CallRecord
from echo_rtc.train.__main__ import COMMANDS
from echo_rtc.web import connections, limits
from echo_rtc.web.app import SECURITY_HEADERS
from echo_rtc.web.avatars import UPLOAD_TIMEOUT_S
from echo_rtc.web.problems import ProblemType
from tests.browser.conftest import TEST_CARD, BrowserKind, Servers
from tests.docs import GENERATED, PAGES, ROOT, page, section, table
from tests.support.signing import make_signer

README = page("README")
TEXTS = {name: page(name) for name in ("README", "CONTRIBUTING", *PAGES)}
ALL = "\n".join(TEXTS.values())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
IGNORED = tuple(re.findall(r"^/?([\w.]+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE))
"""Folders that a user's commands make."""
FILE_ENDINGS = (".py", ".md", ".yaml", ".toml", ".js", ".html", ".png", ".css", ".safetensors")
PLACEHOLDERS = {"mine.html", "photo.jpg", "me.png"}
"""Files that the reader has, not the repository."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", ALL, re.MULTILINE | re.DOTALL)]
PROSE = re.sub(r"^```.*?^```$", "", ALL, flags=re.MULTILINE | re.DOTALL)
QUOTED = re.findall(r"`([^`\n]+)`", PROSE)
COMMAND_LINES = [line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()]
RUN_LINE, TEST_LINE = COMMAND_LINES[:2]


def commands(program: str) -> list[list[str]]:
    """The arguments of every use of ``program`` in the documentation, in blocks, tables and sentences."""
    found = []
    for text in [*COMMAND_LINES, *QUOTED]:
        for part in re.split(r"&&|\|\|", text):
            words = shlex.split(part)
            wanted = program.split()
            for start in range(len(words) - len(wanted) + 1):
                if [Path(words[start]).name, *words[start + 1 : start + len(wanted)]] == wanted:
                    found.append(words[start + len(wanted) :])
    return found


def flags(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--") and word != "--help"}


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(("name", "title"), list(GENERATED))
def test_generated_tables_are_those_of_the_code(name: str, title: str) -> None:
    assert table(name, title) == GENERATED[name, title](), "rewrite the tables: python -m tests.docs --write"


def test_what_the_default_file_changes_is_said() -> None:
    config = read_config(ROOT / "configs" / "embedded.yaml")
    with_file, without = load_settings([], {}), Settings()
    changed = {
        name
        for name in config
        if name not in ("model", "avatars", "idle_pose_dir") and getattr(with_file, name) != getattr(without, name)
    }
    said = dict(re.findall(r"`(\w+)` ([\d.]+\d|\d|mia)", section("configuration", "Flags").partition("|")[0]))
    assert said == {name: config[name] for name in changed}


def test_the_problem_types_are_all_named() -> None:
    urns = [str(kind) for kind in ProblemType if kind is not ProblemType.GENERIC]
    prefix = "urn:echo-rtc:problem:"
    assert {ProblemType.GENERIC, prefix, *(urn.removeprefix(prefix) for urn in urns)} <= set(
        re.findall(r"`([^`]+)`", section("http-api", "Errors"))
    )


def test_the_messages_are_those_of_streams() -> None:
    rows = {
        kind.strip("`"): set(re.findall(r"`(\w+)`", fields)) for kind, fields, _ in table("http-api", "Data channel")
    }
    assert rows["state"] == {"state", *StreamState}
    assert set(rows) == set(EventType)
    counters = StreamCounters()
    snapshot = Snapshot("", "", "", "", 0.0, 0, 1, 0, {}, CallRecord(0.0), (), (), counters)
    assert rows["stats"] == set(snapshot.picture())
    assert rows["end"] == {"reason", "reconnect", "after_s"}


def test_the_benches_are_all_there() -> None:
    rows = table("benchmarks", "Benches")
    assert [row[0].strip("`") for row in rows] == list(BENCHMARKS)
    for name, _, figures, command in rows:
        source = (ROOT / "echo_rtc" / "bench" / f"{name.strip('`')}.py").read_text()
        for figure in re.findall(r"`(\w+)`", figures):
            # The name of a codec is put before "_core" as the figures are made.
            assert f'"{figure}"' in source or f"}}_{figure.split('_')[-1]}" in source, figure
        assert command.startswith(f"`echo-rtc bench {name.strip('`')}")


def test_the_figures_are_numbers_with_their_commands() -> None:
    for figure, seen, where, command in table("benchmarks", "Figures"):
        assert re.search(r"\d", seen), figure
        assert where, figure
        assert re.match(r"`echo-rtc bench \w+", command), figure
    assert "\N{HORIZONTAL ELLIPSIS}" not in ALL


def test_what_is_said_of_reliability_is_checked_by_what_is_named() -> None:
    for what, seen, checks in table("reliability", "Reliability"):
        assert seen, what
        named = re.findall(r"`([^`]+)`", checks)
        assert named, what
        for check in named:
            path, _, name = check.partition("::")
            if name:
                assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), check
            else:
                assert re.match(r"echo-rtc bench \w+", check), check


def test_the_words_of_troubles_are_those_shown() -> None:
    sources = [*(ROOT / "echo_rtc").rglob("*.py"), *(ROOT / "static").rglob("*.js"), ROOT / "server.py"]
    shown = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for words, mend in table("operations", "Troubleshooting"):
        assert words.strip("`") in shown, words
        assert mend.endswith("."), words


def test_the_clients_are_those_of_the_tests() -> None:
    packages = json.loads((ROOT / "tests" / "clients" / "package.json").read_text())["dependencies"]
    tried = {client: versions for client, versions, *_ in table("whip-whep", "Clients that were tried")}
    for name, version in packages.items():
        if name != "esbuild":  # it only packs
            [versions] = [versions for client, versions in tried.items() if f"`{name}`" in client]
            assert version in versions.split(", "), name


def test_the_layout_has_every_room() -> None:
    places = {row[0].strip("`") for row in table("architecture", "Layout")}
    rooms = {f"echo_rtc/{path.parent.name}/" for path in (ROOT / "echo_rtc").glob("*/__init__.py")}
    assert rooms <= places
    [words] = [about for place, about in table("architecture", "Layout") if place == "`echo_rtc/`"]
    modules = {path.name for path in (ROOT / "echo_rtc").glob("[!_]*.py")}
    assert set(re.findall(r"`(\w+\.py)`", words)) == modules


MODULES = sorted((ROOT / "static" / "element").glob("*.js"), key=lambda path: path.stem == "element")
ELEMENT = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)
"""The source of the element's modules; that of its class is the last."""


def names(title: str) -> list[str]:
    """What the first column of a section's table names, without arguments."""
    return [
        name.partition("(")[0] for row in table("web-component", title) for name in re.findall(r"`([^`]+)`", row[0])
    ]


def test_the_elements_attributes_are_those_it_reads() -> None:
    [observed] = re.findall(r"static observedAttributes = \[(.*?)\]", ELEMENT, re.DOTALL)
    read = set(re.findall(r'\w+Attribute\("(\w+)"', ELEMENT.partition("export class EchoRtc ")[2]))
    assert set(names("Attributes")) == {*re.findall(r'"(\w+)"', observed), "autoplay"} == read
    frame = (ROOT / "static" / "embed.js").read_text(encoding="utf-8")
    [allowed] = re.findall(r"const ATTRIBUTES = \[(.*?)\]", frame)
    sentence = re.search(
        r"Its parameters are attributes \((.*?);", section("web-component", "On your own page"), re.DOTALL
    )
    assert sentence
    assert re.findall(r"`(\w+)`", sentence[1]) == re.findall(r'"(\w+)"', allowed)
    [query] = re.findall(r"/embed\?([^#]+)#token=", section("web-component", "On your own page"))
    assert {part.partition("=")[0] for part in query.split("&")} <= set(re.findall(r'"(\w+)"', allowed))


def test_the_elements_methods_and_properties_are_its_public_ones() -> None:
    body = ELEMENT.partition("export class EchoRtc ")[2]
    public = set(re.findall(r"^  (?:async |get |set )?([a-z]\w*)\(.*\) \{$", body, re.MULTILINE))
    of_the_browser = {"constructor", "connectedCallback", "disconnectedCallback", "attributeChangedCallback", "switch"}
    assert set(names("Methods and properties")) == public - of_the_browser


def test_the_elements_events_are_those_it_sends() -> None:
    body = ELEMENT.partition("export class EchoRtc ")[2]
    sent = set(re.findall(r'#emit\("(\w+)"', body)) | set(re.findall(r'dispatchEvent\(new Event\("(\w+)"', body))
    rows = {row[0].strip("`"): row[1] for row in table("web-component", "Events")}
    assert set(rows) == sent

    def words(name: str) -> set[str]:
        """The words of a union type of the module."""
        [union] = re.findall(rf"@(?:typedef|property|param) {{((?:[^{{}}]*?\|)+[^{{}}]*?)}}(?:\s|\*)+{name}\b", ELEMENT)
        return set(re.findall(r'"([\w-]+)"', union))

    whys = re.findall(r"@property {([^{}]*)} why\b", ELEMENT)
    assert len(whys) == 2, "one of a call that waits, one of a call that is over"
    reasons = set(re.findall(r'"([\w-]+)"', " ".join(whys)))
    told = {"state", "why", "message", "retryMs"}
    assert set(re.findall(r"`([\w-]+)`", rows["state"])) == words("CallState") | reasons | told
    codes = {f"microphone-{fault}" for fault in words("MicrophoneFault")}
    codes |= {"sample", "speech", "unsupported", "nameless", "address", "ended", "rejected", "unauthorized", "gave-up"}
    assert set(re.findall(r"`([\w-]+)`", rows["error"])) - {"code", "message"} == codes
    figures = re.findall(r"@property \{.* \| null\} (\w+)", ELEMENT.partition("LinkFigures What")[2].partition("*/")[0])
    assert set(figures) <= set(re.findall(r"`(\w+)`", rows["stats"]))


def test_the_elements_parts_and_custom_properties_are_its_own() -> None:
    parts = {part for text in re.findall(r'\bpart(?:: | = leads \? | : )"([\w -]+)"', ELEMENT) for part in text.split()}
    assert set(names("Parts")) == parts
    assert set(names("Looks")) == set(re.findall(r"var\((--echo-rtc-[\w-]+),", ELEMENT))


# -------------------------------------------------------------------------------------------------------------- paths


def test_the_eight_steps_name_files_that_exist() -> None:
    steps = re.findall(r"^(\d)\. (.*?)(?=^\d\. |^$)", section("README", "How it works"), re.MULTILINE | re.DOTALL)
    assert [number for number, _ in steps] == list("12345678")
    for number, text in steps:
        files = re.findall(r"`((?:static|echo_rtc)/[\w/.]+)`", text)
        assert files, f"step {number} names no file"
        for file in files:
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("name", list(TEXTS))
def test_links_lead_to_files(name: str) -> None:
    folder = PAGES[name].parent if name in PAGES else ROOT
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        assert (folder / target.partition("#")[0]).is_file(), target


def test_the_readme_is_short_and_lists_all_pages() -> None:
    assert len(README.splitlines()) <= 200
    assert {f"docs/{name}.md" for name in PAGES} <= set(
        re.findall(r"\]\(([^)]+)\)", section("README", "Documentation"))
    )


def test_the_picture_is_one() -> None:
    [(text, target)] = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)
    assert len(text) > 20, "a picture needs words for those who do not see it"
    assert (ROOT / target).read_bytes().startswith(b"\x89PNG")


def test_every_path_exists() -> None:
    top = {path.name for path in ROOT.iterdir() if path.name not in IGNORED}
    words = [word for text in QUOTED for word in shlex.split(text)]
    paths = {word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word) and word.endswith(FILE_ENDINGS)}
    paths |= {word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/", word)}
    in_blocks = {word for line in COMMAND_LINES for word in line.replace('"', " ").split()}
    paths |= {word for word in [*words, *in_blocks] if "/" in word and word.split("/")[0] in top}
    assert len(paths) > 40
    # In the table of the layout, modules stand below their package, as in its sentences.
    places = (ROOT, ROOT / "echo_rtc", ROOT / "echo_rtc" / "assets" / "embedded")
    for path in sorted(paths - PLACEHOLDERS):
        if path.split("/")[0] not in IGNORED:
            file, _, _ = path.partition("::")  # a test in it, in the table of reliability
            assert any((place / file).exists() for place in places), f"{path} does not exist"


def test_folders_that_are_made_are_not_committed() -> None:
    assert {"training", "pretrained_weights", "logs", ".venv"} <= set(IGNORED)


# ----------------------------------------------------------------------------------------------------------- commands


def test_the_first_command_serves_what_is_said() -> None:
    assert RUN_LINE == "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python server.py"
    assert f"<http://localhost:{Settings().port}>" in section("README", "Two commands")
    minimum = PROJECT["requires-python"].removeprefix(">=")
    assert f"Python {minimum} or newer" in section("README", "Two commands")
    assert f"older than {minimum}" in section("operations", "Troubleshooting")


def test_the_second_command_is_the_one_of_the_ci() -> None:
    install = re.search(r"apt-get install --yes ([\w\- .]+) && python3 -m venv \.venv && ", TEST_LINE)
    packages = re.search(r"^packages=\(([^)]*)\)", CI, re.MULTILINE)
    assert install
    assert packages
    assert install[1].split() == packages[1].split()
    assert '.venv/bin/pip install -e ".[test]"' in TEST_LINE
    assert 'pip install --quiet --editable ".[test]"' in CI
    assert TEST_LINE.endswith(' && PATH="$PWD/.venv/bin:$PATH" tests/run')
    assert "\n./tests/run\n" in CI
    [version] = re.findall(r"torch==[\d.]+", CI)
    assert set(re.findall(r"torch==[\d.]+", ALL)) == {version}


def test_extras_exist() -> None:
    extras = set(re.findall(r"\.\[(\w+)\]", ALL))
    assert extras >= {"test", "gpu"}
    assert extras <= set(PROJECT["optional-dependencies"])


def test_the_servers_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = [words for words in commands("python server.py") if words]
    assert {"configs/echomimic_v2.yaml", "configs/testcard.yaml"} <= {word for words in found for word in words}
    for words in found:
        load_settings(words, {})


def test_the_renderings_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_signer(tmp_path)  # of the names that the docs give
    found = commands("echo-rtc render")
    assert found
    for words in found:
        # All is well but that the voice is not here.
        assert command_line.main(["render", *words]) == 1
        assert words[words.index("--audio") + 1] in capsys.readouterr().err
    [sentence] = re.findall(
        r"It takes the flags below, but for (.*?) down\.", section("python-api", "Offline rendering"), re.DOTALL
    )
    *left_out, first = re.findall(r"`(--[\w-]+)`", sentence)
    table_of_flags = [row.flag for row in flag_table()]
    left_out += table_of_flags[table_of_flags.index(first) :]
    assert [flag.removeprefix("--").replace("-", "_") for flag in left_out] == list(LIVE_ONLY)
    assert set(tmp_path.iterdir()) == {made.cert, made.key}


def test_benches_flags_exist() -> None:
    for name, *words in commands("echo-rtc bench"):
        if name != "NAME":
            known = (ROOT / "echo_rtc" / "bench" / f"{name}.py").read_text()
            taken = any(word in known for word in ("SettingsParser(", "add_flags("))
            settings = {row.flag for row in flag_table()} if taken else set()
            for flag in flags(words) - settings:
                assert f'"{flag}"' in known, f"the bench {name} has no flag {flag}"


def test_the_trainings_are_all_there_in_order() -> None:
    lines = [words for words in commands("echo-rtc train") if words]
    # Those that make an avatar's parts, and not the model, are in the sentence below.
    named = [words[0] for words in lines] + re.findall(r"`([\w-]+) --output", section("training", "Training"))
    assert set(named) == set(COMMANDS)
    steps = list(dict.fromkeys(words[0] for words in lines if words[0] in list(COMMANDS)[:7]))
    assert steps == list(COMMANDS)[:7]
    for name, *words in lines:
        module, _, _ = COMMANDS[name]
        spec = find_spec(f"echo_rtc.train.{module}")
        assert spec, f"echo_rtc/train/{module}.py, of the command {name}, does not exist"
        assert spec.origin
        known = Path(spec.origin).read_text()
        for flag in flags(words):
            assert f'"{flag}"' in known, f"the command {name} has no flag {flag}"


def test_the_conversion_exists() -> None:
    known = (ROOT / "echo_rtc" / "model" / "convert.py").read_text()
    found = [words for words in commands("echo-rtc convert") if words]
    assert found
    for word in {flag for words in found for flag in flags(words)}:
        assert f'"{word}"' in known, f"echo-rtc convert has no {word}"


def test_weights_are_fetched_as_the_configuration_says() -> None:
    config = (ROOT / "configs" / "echomimic_v2.yaml").read_text()
    fetched = re.findall(r"hf download (\S+)(?: --include \"(\S+)\")? --local-dir (\S+)", "\n".join(COMMAND_LINES))
    assert len(fetched) == 3
    told = re.sub(r" *\\\n# *", " ", config)
    for repository, pattern, folder in fetched:
        include = f' --include "{pattern}"' if pattern else ""
        assert f"hf download {repository}{include} --local-dir {folder}" in re.sub(" +", " ", told)


# -------------------------------------------------------------------------------------------------------------- words


def test_nothing_is_said_that_readers_cannot_have() -> None:
    hosts = set(re.findall(r"https?://([^/\s>)`]+)", ALL)) | set(re.findall(r"\b[\w-]+\.(?:org|com|io|net|dev)\b", ALL))
    # Names that end in .example are nobody's (RFC 2606), and IPTC's names a term, which is not fetched.
    known = {f"localhost:{Settings().port}", "cv.iptc.org", "iptc.org"}
    assert {host for host in hosts if not host.endswith(".example")} <= known
    assert "index-url" not in ALL
    assert not re.findall(r"(?<![\w.:}/])/(?:work|opt|root|home|Users|tmp|usr|var|etc|mnt|srv)\b", ALL)
    assert not re.findall(r"\b(?:prompt|assistant)s?\b", ALL, re.IGNORECASE)


# ---------------------------------------------------------------------------------------------------- pages of others


@pytest.fixture
def no_leaks() -> None:
    """Takes the place of the check for processes left behind: a browser's helpers take their time to go."""


@pytest.mark.usefixtures("no_leaks")
async def test_the_script_for_other_pages_makes_a_call(tmp_path: Path) -> None:
    [script] = [block.text for block in BLOCKS if block.language == "js"]
    assert len(script.splitlines()) <= 16
    [video] = re.findall(r"`(<video[^`]+)`", PROSE)
    [path] = re.findall(r"`(/static/[\w.]+\.html)`", PROSE)
    page_text = f'<!doctype html><body>{video}<script type="module" src="mine.js"></script></body>'
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert executable, "this test needs Chromium on the PATH"
    servers = Servers(tmp_path / "logs")
    try:
        server = await servers.start(TEST_CARD, "--width", "128", "--height", "128")
        kind = BrowserKind("speaking", ROOT / "static" / "sample.wav", ())
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=executable, args=kind.flags)
            page = await browser.new_page()
            troubles: list[str] = []
            page.on("pageerror", lambda error: troubles.append(str(error)))
            files = {path: (page_text, "text/html"), "/static/mine.js": (script, "text/javascript")}

            async def answer(route: Route) -> None:
                body, kind = files[route.request.url.removeprefix(server.url)]
                await route.fulfill(body=body, headers={**SECURITY_HEADERS, "Content-Type": kind})

            for file in files:
                await page.route(server.url + file, answer)
            async with (
                page.expect_response("**/offer") as offered,
                page.expect_console_message(lambda line: json.loads(line.text)["type"] == "stats"),
            ):
                await page.goto(server.url + path)
            stream = (await (await offered.value).json())["stream"]
            await page.evaluate(
                """() => new Promise((resolve) => {
                  const look = () => document.querySelector("video").videoWidth ? resolve() : setTimeout(look, 50);
                  look();
                })"""
            )
            assert (await server.get(f"/streams/{stream}"))[0] == 200
            await page.goto("about:blank")
            await server.freed(stream)
            await browser.close()
        assert troubles == []
        assert await server.stop() == 0
    finally:
        await servers.close()


def test_the_limits_of_connections_are_those_of_the_code() -> None:
    rows = {name: f"{flag} {beyond}" for name, flag, beyond in table("security", "Limits")}
    for beginning, figures in {
        "HTTP connections": (connections.MOST_CONNECTIONS,),
        "HTTP connections without an answer yet": (connections.MOST_NEW, connections.MOST_HANDSHAKES),
        "time for a TLS handshake, for a complete request head, between two requests": (
            connections.HEAD_S,
            connections.PROXY_IDLE_S,
        ),
        "time in which a client takes nothing of an answer": (connections.STALLED_S,),
        "requests of one address": (limits.BURST_REQUESTS, limits.REQUESTS_PER_S, limits.MAX_PACE_S),
        "what is read of a body after a refusal": (connections.LINGER_BYTES // 1024, connections.LINGER_S),
        "an upload": (MAX_PICTURE_BYTES // 2**20, MAX_POSES_BYTES // 2**20, UPLOAD_TIMEOUT_S),
    }.items():
        assert [int(word) for word in re.findall(r"\b\d+\b", rows[beginning])][: len(figures)] == [
            int(figure) for figure in figures
        ], beginning
