"""Settings: where a value comes from, what is refused and in which words."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc import __version__
from echo_rtc.errors import SettingsError
from echo_rtc.resources import EMBEDDED
from echo_rtc.settings import (
    ENVIRONMENT_PREFIX,
    MAX_CONFIG_BYTES,
    AvatarSource,
    Settings,
    SettingsParser,
    flag_table,
    load_settings,
    named_settings,
    read_config,
    settings_from,
)

SEED_DEFAULTS: dict[str, object] = {
    "port": 8080,
    "audio_margin": 2,
    "use_init_latent": True,
    "audio_model_type": "whisper",
    "sample_rate": 16000,
    "fps": 24,
    "clip_frames": 12,
    "width": 512,
    "height": 512,
    "steps": 6,
    "cfg": 2.5,
    "vad_threshold": 0.015,
    "low_ram": False,
    "host": "127.0.0.1",
}
"""The flags of the system this one follows keep their names and defaults."""


T = TypeVar("T")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least file there can be: an engine that needs no model."""
    path = tmp_path_factory.mktemp("settings") / "card.yaml"
    path.write_text("engine: testcard\n")
    return path


def complaint(argv: list[str], environ: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(argv, environ)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def file_complaint(folder: Path, content: str | bytes) -> str:
    path = folder / "broken.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return complaint(["--config", str(path)], {})


def test_defaults_are_those_of_the_predecessor(card: Path) -> None:
    settings = load_settings(["--config", str(card)], {})
    assert {name: getattr(settings, name) for name in SEED_DEFAULTS} == SEED_DEFAULTS
    assert settings.engine == "testcard"
    assert settings.model == {}
    assert settings.clip_format.clip_duration == 0.5
    assert settings.clip_format.sample_rate == 16_000


def test_the_default_file_is_the_embedded_model() -> None:
    settings = load_settings([], {})
    assert settings.config.name == "embedded.yaml"
    assert (settings.width, settings.height, settings.steps, settings.cfg) == (384, 384, 1, 1.0)
    assert settings.model["weights"] == str(EMBEDDED)
    assert settings.model_base == settings.config.parent


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "port": st.integers(0, 65_535),
    "audio_margin": st.integers(0, 24),
    "use_init_latent": st.booleans(),
    "low_ram": st.booleans(),
    "audio_model_type": st.sampled_from(["whisper", "wav2vec2"]),
    "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    "sample_rate": st.integers(8_000, 48_000),
    "steps": st.integers(1, 100),
    "cfg": st.floats(0, 20),
    "width": st.integers(16, 1024).map(lambda half: 2 * half),
    "vad_threshold": st.floats(0, 1),
    "max_streams": st.integers(0, 1000),
    "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
    "devices": st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:0,cuda:3"]),
}


@st.composite
def sources(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A setting and what flag, environment and file say of it (None: nothing)."""
    name = draw(st.sampled_from(sorted(VALUES)))
    return name, draw(st.lists(st.none() | VALUES[name], min_size=3, max_size=3))


@given(sources(), st.booleans())
def test_flag_wins_over_environment_over_file_over_default(case: tuple[str, list[Any]], dashes: bool) -> None:
    name, (flag, variable, key) = case
    argv: list[str] = []
    if isinstance(flag, bool):
        argv = [f"--{'' if flag else 'no-'}{name.replace('_', '-')}"]
    elif flag is not None:
        argv = [f"--{name.replace('_', '-')}", str(flag)]
    environ = {} if variable is None else {ENVIRONMENT_PREFIX + name.upper(): str(variable)}
    content = "engine: testcard\n"
    if key is not None:
        content += f"{name.replace('_', '-') if dashes else name}: {key}\n"
    with file_of(content.encode()) as path:
        settings = load_settings([*argv, "--config", str(path)], environ)
    default = next(item.default for item in fields(Settings) if item.name == name)
    expected = next((value for value in (flag, variable, key) if value is not None), default)
    assert getattr(settings, name) == expected
    assert type(getattr(settings, name)) is type(default)


@contextmanager
def file_of(content: bytes) -> Iterator[Path]:
    """A YAML file for one example of a property."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def outcome(load: Callable[[], T]) -> T | str:
    """What ``load`` returns, or the sentence with which it refuses; any other exception is a defect."""
    try:
        return load()
    except SettingsError as error:
        return str(error)


@given(st.text(max_size=40), st.sampled_from(sorted(VALUES)))
def test_any_text_is_a_value_or_one_sentence(text: str, name: str) -> None:
    variable = ENVIRONMENT_PREFIX + name.upper()
    with file_of(b"engine: testcard\n") as path:
        result = outcome(lambda: load_settings(["--config", str(path)], {variable: text}))
    if isinstance(result, str):
        assert result.startswith(f"{variable} is ")
        assert "\n" not in result
    else:
        assert not text.strip() or getattr(result, name) is not None


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="ab:-[]{}#!&*<>|'\"\n ~?%@,1", max_size=80).map(str.encode))
def test_any_file_is_a_mapping_or_one_sentence(content: bytes) -> None:
    with file_of(content) as path:
        result = outcome(lambda: read_config(path))
    assert isinstance(result, dict) or (str(path) in result and "\n" not in result)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--prot", "80"], "--prot is not a flag; did you mean --port?"),
        (["--zzzzz", "x"], "--zzzzz is not a flag; --help lists them"),
        (["--por", "80"], "--por is not a flag; did you mean --port?"),
        (["-p", "80"], "-p is not a flag"),
        (["serve"], "'serve' is not expected here"),
        (["--port"], "--port is given without a value; it must be a whole number from 0 to 65535"),
        (["--port", ""], "--port is ''; it must be a whole number from 0 to 65535"),
        (["--port", "80.5"], "--port is '80.5'; it must be a whole number"),
        (["--port", "-1"], "--port is -1; it must be a whole number from 0 to 65535"),
        (["--port", "65536"], "--port is 65536"),
        (["--port", "\u0668\u0660"], "it must be a whole number"),
        (["--port", "9" * 5000], "..."),
        (["--width", "513"], "--width is 513; it must be an even number from 32 to 2048"),
        (["--height", "4096"], "--height is 4096"),
        (["--steps", "0"], "--steps is 0; it must be a whole number from 1 to 100"),
        (["--cfg", "nan"], "--cfg is 'nan'; it must be a number from 0 to 20"),
        (["--cfg", "1e400"], "--cfg is inf; it must be a number"),
        (["--vad-threshold", "1.5"], "--vad-threshold is 1.5; it must be a number from 0 to 1"),
        (["--audio-model-type", "wisper"], "it must be whisper or wav2vec2; did you mean whisper?"),
        (["--engine", "rai"], "--engine is 'rai'; it must be local, ray or testcard; did you mean ray?"),
        (["--devices", "gpu"], "--devices is 'gpu'; it must be auto, cpu, cuda or a list"),
        (["--devices", "auto,cpu"], "--devices is 'auto,cpu'"),
        (["--devices", "cuda:0,cuda:0"], "name each device once"),
        (["--low-ram=false"], "--low-ram is given 'false' but takes no value; write --low-ram or --no-low-ram"),
        (["--no-low-ram=1"], "write --low-ram or --no-low-ram"),
        (["--log-format", "yaml"], "it must be text or json"),
        (["--log-file-size", "0"], "--log-file-size is 0.0; it must be a number from 0.01 to 10000"),
        (["--log-files", "0"], "--log-files is 0; it must be a whole number from 1 to 1000"),
        (["--log-level", "verbose"], "it must be debug, info, warning or error"),
        (["--host", "a b"], "--host is 'a b'; it must be an address or a host name"),
        (["--frame-ancestors", "https://a.example; script-src *"], "--frame-ancestors is 'https://a.example;"),
        (["--log-dir", ""], "--log-dir is ''; it must be a path"),
        (["--clip-frames", "96", "--fps", "12"], "so a clip would last 8 s"),
        (["--clip-frames", "1"], "so a clip would last 0.0417 s"),
        (["--max-latency", "0.5"], "a clip of 12 frames alone lasts 0.5 s; raise max_latency or lower clip_frames"),
    ],
)
def test_a_wrong_flag_is_one_sentence(card: Path, argv: list[str], words: str) -> None:
    assert words in complaint(["--config", str(card), *argv], {})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ECHO_RTC_PROT", "80", "the environment variable ECHO_RTC_PROT is not a setting; did you mean ECHO_RTC_PORT?"),
        ("ECHO_RTC_", "", "is not a setting"),
        ("ECHO_RTC_MODEL", "x", "is not a setting"),
        ("ECHO_RTC_LOW_RAM", "maybe", "ECHO_RTC_LOW_RAM is 'maybe'; it must be true or false"),
        ("ECHO_RTC_CONFIG", "/nowhere/x.yaml", "config /nowhere/x.yaml does not exist"),
    ],
)
def test_a_wrong_variable_is_one_sentence(key: str, value: str, words: str) -> None:
    assert words in complaint([], {key: value})


def test_other_variables_are_ignored(card: Path) -> None:
    assert load_settings(["--config", str(card)], {"PORT": "x", "echo_rtc_port": "y"}).port == 8080


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot: 80\n", "prot in {path} is not a setting; did you mean port?"),
        ("steps 6\n", "is not a mapping; write one 'key: value' per line"),
        ("- steps\n", "is not a mapping"),
        ("steps:\n", "steps in {path} has no value; it must be a whole number from 1 to 100"),
        ("steps: ~\n", "has no value"),
        ("steps: [6]\n", "steps in {path} is a list; it must be a whole number"),
        ("steps: {a: 6}\n", "steps in {path} is a mapping; it must be a whole number"),
        ("steps: six\n", "steps in {path} is 'six'; it must be a whole number"),
        ("steps: 2024-13-45\n", "it must be a whole number"),
        ("low_ram: maybe\n", "low_ram in {path} is 'maybe'; it must be true or false"),
        ("steps: 6\nsteps: 7\n", "steps is given twice in config {path} (line 2); keep one of the two"),
        ("low-ram: true\nlow_ram: true\n", "low_ram is given twice"),
        ("model: {weights: a, weights: b}\n", "weights is given twice"),
        ("config: other.yaml\n", "a file cannot name another"),
        ("steps: 6: 7\n", "is not YAML: line 1, mapping values are not allowed here"),
        ("steps: 'six\n", "is not YAML: line 2"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("steps: !!int 6\n", "line 1 of config {path} has the tag 'tag:yaml.org,2002:int'"),
        ("a: !!python/object/apply:os.system [ls]\n", "has the tag"),
        ("steps: &a 6\nfps: *a\n", "line 1 of config {path} has an anchor or alias; write the value out"),
        ("? [a]\n: 1\n", "line 1 of config {path} has a key that is not a word"),
        ("[" * 5_000, "is nested too deeply"),
        ("model: weights\n", "model in {path} is 'weights'; it must be a mapping that names the weights"),
        ("model: {weights: {deep: 1}}\n", "model.weights in {path}"),
        ("model: [a]\n", "it must be a mapping"),
        ("avatars: [a]\n", "avatars in {path} is ['a']; it must be a mapping of names to their files"),
        ("avatars: {Ann: {reference_image: a.png}}\n", "avatars.Ann in {path} is not a name; it must have 1 to 40"),
        ("avatars: {default: {reference_image: a.png}}\n", "avatars.default in {path} is taken"),
        ("avatar_name: Ann\n", "avatar_name in {path} is 'Ann'; it must be 1 to 40 small letters"),
        (
            "avatar_name: ann\navatars: {ann: {reference_image: a.png}}\nmodel: {weights: a}\n",
            "which is one of avatars",
        ),
        ("avatars: {ann: a.png}\n", "avatars.ann in {path} lacks reference_image; write avatars: {{ann: {{ref"),
        ("avatars: {ann: {pose_dir: poses}}\n", "avatars.ann in {path} lacks reference_image"),
        (
            "avatars: {ann: {reference_image: [a]}}\n",
            "avatars.ann.reference_image in {path} is ['a']; it must be a path",
        ),
        ("avatars: {ann: {reference_image: a.png, poses: b}}\n", "avatars.ann.poses in {path} is unknown; known are"),
        ("avatars: {a: {reference_image: x}, a: {reference_image: y}}\n", "a is given twice"),
        ("steps: 6\n", "model is missing in {path}; the local engine needs it"),
        ("", "model is missing"),
        ("# only a comment\n", "model is missing"),
        (b"steps: \xff\n", "is not UTF-8 text (byte 7); save it as UTF-8"),
        (b"steps: \x00\n", "is not YAML"),
        (b"#" * (MAX_CONFIG_BYTES + 1), "is larger than 64 KiB"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words.format(path=tmp_path / "broken.yaml") in file_complaint(tmp_path, content)


def test_further_avatars_are_named_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(
        "engine: testcard\npose-dir: poses\navatars:\n  my-friend:\n    reference-image: f.png\n"
        "  my_friend: {reference_image: /g.png, pose_dir: g}\n"
    )
    ours, own = AvatarSource("my-friend", tmp_path / "f.png", tmp_path / "poses"), Path("/g.png")
    assert load_settings(["--config", str(path)], {}).avatars == (
        ours,
        AvatarSource("my_friend", own, tmp_path / "g"),
    )
    assert load_settings(["--config", str(path), "--pose-dir", "/p"], {}).avatars[0].pose_dir == Path("/p")
    assert "the configuration describes 3; raise max_avatars" in complaint(
        ["--config", str(path), "--max-avatars", "2"], {}
    )
    path.write_text("engine: testcard\n")
    assert load_settings(["--config", str(path)], {}).avatars == ()


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    assert "does not exist; name a YAML file" in complaint(["--config", str(tmp_path / "none.yaml")], {})
    assert "is a folder" in complaint(["--config", str(tmp_path)], {})
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in complaint(["--config", str(tmp_path / "pipe")], {})
    (tmp_path / "card.yaml").touch()
    assert "cannot be read" in complaint(["--config", str(tmp_path / "card.yaml" / "deeper")], {})


def test_a_key_overridden_by_a_flag_must_still_be_possible(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text("engine: testcard\nsteps: none\n")
    assert "steps in" in complaint(["--config", str(path), "--steps", "3"], {})


def test_scalars_of_a_file_are_read_like_flags(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfengine: 'testcard'\nvad-threshold: 1e-2\ncfg: 3\nuse_init_latent: off\nport: \"81\"\n"
    )
    settings = load_settings(["--config", str(path)], {})
    assert (settings.vad_threshold, settings.cfg, settings.use_init_latent, settings.port) == (0.01, 3.0, False, 81)


@pytest.mark.parametrize("text", ["true", "TRUE", "yes", "on", "1"])
@pytest.mark.parametrize("inverted", [False, True])
def test_booleans_of_the_environment(card: Path, text: str, inverted: bool) -> None:
    value = {"true": "false", "TRUE": "False", "yes": "no", "on": "off", "1": "0"}[text] if inverted else text
    assert load_settings(["--config", str(card)], {"ECHO_RTC_LOW_RAM": value}).low_ram is not inverted


def test_idle_poses_of_the_file_go_with_its_pose_sequence(tmp_path: Path, card: Path) -> None:
    path = tmp_path / "idle.yaml"
    path.write_text(card.read_text() + "\npose_dir: /p\nidle_pose_dir: /calm\n")
    given = ["--config", str(path)]
    assert load_settings(given, {}).idle_pose_dir == Path("/calm")
    assert load_settings([*given, "--pose-dir", "/mine"], {}).idle_pose_dir is None
    assert load_settings(given, {"ECHO_RTC_POSE_DIR": "/mine"}).idle_pose_dir is None
    own = load_settings([*given, "--pose-dir", "/mine", "--idle-pose-dir", "/still"], {})
    assert own.idle_pose_dir == Path("/still")


def test_relative_paths_start_where_they_are_written(
    tmp_path: Path, card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "my.yaml").write_text("engine: testcard\npose_dir: ../poses\nreference_image: /abs/face.png\n")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(["--config", "configs/my.yaml"], {"ECHO_RTC_LOG_DIR": "here"})
    assert settings.config == folder / "my.yaml"
    assert settings.pose_dir == tmp_path / "poses"
    assert settings.reference_image == Path("/abs/face.png")
    assert settings.log_dir == tmp_path / "here"
    assert load_settings(["--config", "configs/my.yaml", "--pose-dir", "p"], {}).pose_dir == tmp_path / "p"
    monkeypatch.setenv("HOME", "/home/someone")
    home = load_settings(["--config", str(card), "--pose-dir", "~/p", "--log-dir", "~nobody-of-this-name/x"][:4], {})
    assert home.pose_dir == Path("/home/someone/p")
    assert "--log-dir" in complaint(["--config", str(card), "--log-dir", "~nobody-of-this-name/x"], {})


def test_settings_are_checked_however_they_are_made() -> None:
    settings = Settings(engine="testcard")
    assert replace(settings, width=64, cfg=1).width == 64
    with pytest.raises(SettingsError, match="width is 63; it must be an even number"):
        replace(settings, width=63)
    with pytest.raises(SettingsError, match="port is 'x'; it must be a whole number"):
        replace(settings, port="x")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="steps is True"):
        replace(settings, steps=True)


def test_a_list_is_a_repeated_flag_a_list_of_a_file_or_words(tmp_path: Path, card: Path) -> None:
    expected = ("10.0.0.1", "10.1.0.0/16")
    path = tmp_path / "card.yaml"
    for text in (
        "[10.0.0.1, 10.1.0.0/16]",
        "10.0.0.1 10.1.0.0/16",
        "10.0.0.1,10.1.0.0/16",
        "\n- 10.0.0.1\n- 10.1.0.0/16",
    ):
        path.write_text(f"engine: testcard\ntrusted_proxy: {text}\n")
        assert load_settings(["--config", str(path)], {}).trusted_proxy == expected
    flags = ["--trusted-proxy", "10.0.0.1", "--trusted-proxy", "10.1.0.0/16"]
    assert load_settings(["--config", str(card), *flags], {}).trusted_proxy == expected
    variable = {"ECHO_RTC_TRUSTED_PROXY": " 10.0.0.1, 10.1.0.0/16 "}
    assert load_settings(["--config", str(card)], variable).trusted_proxy == expected
    assert load_settings(["--config", str(card), "--trusted-proxy", "::1"], variable).trusted_proxy == ("::1",)
    assert load_settings(["--config", str(card)], {}).trusted_proxy == ()
    said = complaint(["--config", str(card), "--trusted-proxy", "10.0.0.1", "--trusted-proxy", "my.proxy"], {})
    assert said.startswith("--trusted-proxy is 'my.proxy'; it must be an address such as")
    for text in ("[]", "[{a: 1}]", "{a: 1}"):
        assert "trusted_proxy in" in file_complaint(tmp_path, f"engine: testcard\ntrusted_proxy: {text}\n")


def test_a_secret_is_never_shown(card: Path) -> None:
    given = {"ECHO_RTC_AUTH_TOKEN": "a-token-for-everything", "ECHO_RTC_TOKEN_SECRET": "s" * 32}
    settings = load_settings(["--config", str(card)], given)
    assert (settings.auth_token, settings.token_secret) == tuple(given.values())
    assert "a-token-for" not in repr(settings)
    assert "sss" not in repr(settings)
    assert load_settings(["--config", str(card)], {}).auth_token is None
    said = complaint(["--config", str(card), "--auth-token", "not allowed: blanks"], {})
    assert said == (
        "--auth-token is a secret of 19 characters, which is not shown; it must be 8 to 512 letters, digits and -._~+/="
    )
    assert "auth-token is empty" in complaint(["--config", str(card), "--auth-token", ""], {})


@pytest.mark.parametrize("nothing", ["", " ", "\t"])
def test_an_empty_variable_counts_as_unset(card: Path, nothing: str) -> None:
    """Compose files and unit files set variables to nothing where they have no value for them."""
    names = ("PORT", "AUTH_TOKEN", "UDP_PORTS", "PUBLIC_IP", "ALLOW_AVATAR_UPLOAD", "CONFIG", "MAX_LATENCY")
    environ = {ENVIRONMENT_PREFIX + name: nothing for name in names}
    assert load_settings(["--config", str(card)], environ) == load_settings(["--config", str(card)], {})


def test_settings_travel_to_a_worker_process() -> None:
    settings = load_settings([], {})
    assert pickle.loads(pickle.dumps(settings)) == settings


def helped(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a request for help prints, white space as single blanks."""
    with pytest.raises(SystemExit) as caught:
        load_settings(argv, {})
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_all_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str], card: Path) -> None:
    text = helped(capsys, "--help-all", "--config", str(card))
    applying = load_settings(["--config", str(card)], {})
    for row in flag_table():
        assert row.flag in text
        assert re.sub(r"\s+", " ", row.meaning)[:30] in text
        if isinstance(value := getattr(applying, row.flag.removeprefix("--").replace("-", "_")), int | float):
            assert f"[{value}{' ' + row.unit if row.unit else ''}]" in text, row.flag
    assert "ECHO_RTC_CLIP_FRAMES" in text


def test_help_is_short_and_shows_what_applies(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_RTC_PORT", "9999")
    text, everything = helped(capsys, "--help"), helped(capsys, "--help-all")
    assert len(text) < 0.5 * len(everything)
    assert "[384 pixels]" in text, "of embedded.yaml, the configuration in use"
    assert "[9999]" in text
    assert "--help-all shows all flags" in text
    assert "--ray-workers" not in text
    assert "[512 pixels]" in helped(capsys, "-h", "--config=configs/testcard.yaml")


def test_help_hides_secrets_and_bears_a_bad_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ECHO_RTC_AUTH_TOKEN", "hush-hush-hush")
    assert "hush-hush" not in helped(capsys, "--help-all")
    (tmp_path / "bad.yaml").write_text("port: many\n")
    assert "[8080]" in helped(capsys, "--help", "--config", str(tmp_path / "bad.yaml"))


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert helped(capsys, "--version") == f"echo-rtc {__version__}"


def test_a_set_up_of_the_package_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("testcard", "testcard.yaml", "configs/testcard.yaml"):
        assert load_settings(["--config", name], {}).engine == "testcard"
    (tmp_path / "testcard.yaml").write_text("engine: testcard\nport: 1234\n")
    assert load_settings(["--config", "testcard.yaml"], {}).port == 1234
    assert "config" in complaint(["--config", "nothing"], {})


def test_the_table_has_every_setting_once() -> None:
    rows = flag_table()
    assert sorted(row.flag for row in rows) == sorted(
        "--" + item.name.replace("_", "-")
        for item in fields(Settings)
        if item.name not in ("model", "avatars", "explicit")
    )
    by_flag = {row.flag: row for row in rows}
    assert by_flag["--config"].default == "configs/embedded.yaml"
    assert by_flag["--reference-image"].default == "package:assets/embedded/reference.png"
    assert by_flag["--low-ram"].default == "False"
    assert by_flag["--max-latency"].unit == "s"
    assert all(row.meaning.endswith(".") for row in rows)


def test_a_command_adds_its_own_arguments_and_leaves_out_others(card: Path) -> None:
    parser = SettingsParser("render", "Renders a file.", without=("host", "port"))
    parser.add_argument("--audio", required=True)
    arguments = parser.arguments(["--audio", "a.wav", "--config", str(card), "--steps", "3"])
    assert arguments.audio == "a.wav"
    assert settings_from(arguments, {}).steps == 3
    with pytest.raises(SettingsError, match="--port is not a flag"):
        parser.arguments(["--audio", "a.wav", "--port", "1"])
    with pytest.raises(SettingsError, match="--audio"):
        parser.arguments([])


def test_lists_that_a_program_names_are_lists_or_tuples() -> None:
    given = ["https://a.example", "https://b.example"]
    assert named_settings({"allow_origin": given}).allow_origin == tuple(given)
    assert named_settings({"allow_origin": tuple(given)}).allow_origin == tuple(given)
