"""Measures a model folder against the drawings it was trained to follow: ``python -m echo_rtc.train evaluate``.

Speech of voices that training never heard is rendered clip by clip as live: the same windows of sound, each clip
chained to the one before, the default avatar's picture and pose sequence. What the same person looks like with the
mouth that the phonemes ask for is drawn beside it, and both are compared:

- mouth: how open it is on a scale from the drawing with shut lips (0) to that with the jaw wide open (1), the
  drawings laid over the face that is seen, wherever it is;
- head: how far the face is from where the pose sequence has it;
- identity: the distance of what neither mouth nor arms touch, for the default avatar and for other drawn people;
- flicker: how much the picture jumps where clips meet, against how much it moves inside clips.

Knows nothing of how the model was trained. The default avatar is the one of ``person.py``; a folder that holds another
picture or pose sequence than that one's is measured wrongly.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_rtc.bench.support.report import report
from echo_rtc.clips import F16Array, F32Array
from echo_rtc.errors import InputError
from echo_rtc.media.clipper import Clipper
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import ClipGenerator, GeneratorSettings, fitting_dtype
from echo_rtc.rendering import RenderRequest
from echo_rtc.settings import Settings, load_settings
from echo_rtc.train.audio_encoder import correlation
from echo_rtc.train.gestures import sample_gestures
from echo_rtc.train.loop import best_device, start_log
from echo_rtc.train.person import Motion, People, draw_reference, to_image
from echo_rtc.train.recipe import CLIP_FRAMES, FPS, SAMPLE_RATE
from echo_rtc.train.scenes import draw_all
from echo_rtc.train.sentences import sentence
from echo_rtc.train.speech import Phoneme, available_voices, language_of, say
from echo_rtc.train.visemes import mouth_track, relative_loudness

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "embedded"
"""The model that ships."""

VOICES = ("flite:awb", "espeak:en*+f4", "espeak:en*+m5", "festival:*")
"""Patterns of voices that the shipped model's training never heard."""

DEFAULT_AVATAR = "default avatar"

LOOP_FRAMES = 144
"""Length of the default avatar's pose sequence, which is ``gestures`` of seed 0."""

LEAD_S, PAUSE_S = 0.5, 0.9
"""Silence before the first sentence and between sentences."""

APART_S = 0.15
"""A frame further than this from every phoneme is silent: the mouth takes about 0.12 s to open and to shut."""

MARGIN_PIXELS = 7
"""How far around what mouth and arms cover nothing is compared for identity."""

FACE_EDGES = (0.25, 0.41, 0.33, 0.67)
"""Top, bottom, left and right of eyes and nose, in sides of the image."""

FACE_REACH = 0.05
"""How far a face is looked for around its place, in sides of the image; the head moves by less."""

PERSON_S = 3.0
"""How long people other than the default avatar speak."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Talk:
    """A voice's speech, whole clips long: ``samples`` (N,) float32 mono at 16 kHz, ``mouth`` (F, 5) what the mouth
    does at each frame, and whether a frame lies inside a phoneme (``speaking``) or far from all (``silent``), (F,)."""

    voice: str
    samples: F32Array
    mouth: Tensor
    speaking: BoolArray
    silent: BoolArray

    @classmethod
    def of(cls, voice: str, samples: F32Array, phonemes: Sequence[Phoneme]) -> Talk:
        """From sound of whole clips and its phonemes."""
        frames = len(samples) * FPS // SAMPLE_RATE
        times = ((np.arange(frames) + 0.5) / FPS).astype(np.float32)
        mouth = mouth_track(phonemes, times, relative_loudness(samples, SAMPLE_RATE, times))
        far = np.full(frames, np.inf)
        for phoneme in phonemes:
            far = np.minimum(far, np.maximum(phoneme.start_s - times, times - phoneme.end_s))
        return cls(voice, samples, torch.from_numpy(mouth), far < 0, far > APART_S)


def speak(voice: str, seconds: float, seed: int) -> Talk:
    """Sentences with pauses between them, about ``seconds`` long. Raises InputError for a voice that is not there."""
    clips = max(1, round(seconds * FPS / CLIP_FRAMES))
    samples = np.zeros(clips * CLIP_FRAMES * SAMPLE_RATE // FPS, np.float32)
    phonemes: list[Phoneme] = []
    rng = np.random.default_rng(seed)
    position = round(LEAD_S * SAMPLE_RATE)
    while position < len(samples):
        spoken = say(sentence(language_of(voice), rng), voice)
        kept = spoken.samples[: len(samples) - position]
        samples[position : position + len(kept)] = 0.5 * kept / max(float(np.abs(kept).max(initial=0.0)), 1e-3)
        start_s = position / SAMPLE_RATE
        phonemes.extend(replace(p, start_s=p.start_s + start_s, end_s=p.end_s + start_s) for p in spoken.phonemes)
        position += len(spoken.samples) + round(PAUSE_S * SAMPLE_RATE)
    return Talk.of(voice, samples, phonemes)


class Stage:
    """A person in the default pose sequence, drawn to measure pictures of chosen frames by.

    Pictures are (N, 3, size, size) uint8, one for each of ``numbers`` (N,), the frames' numbers in media time.
    """

    def __init__(self, people: People, numbers: Sequence[int], size: int) -> None:
        gestures = sample_gestures(1, LOOP_FRAMES, FPS, torch.Generator().manual_seed(0), loop=True)
        # The pose sequence repeats itself, and so do all drawings but those of the speaking mouth.
        positions, self._row = torch.unique(torch.tensor(numbers) % LOOP_FRAMES, return_inverse=True)
        self._people, self._size = people, size
        self._still = Motion(
            mouth=torch.zeros(len(positions), 5),
            blink=gestures.blink[0, positions],
            head=gestures.head[0, positions],
            hands=gestures.hands[0, positions],
            hands_score=gestures.scores[0, positions],
        )
        wide = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]).expand(len(positions), 5)
        self._shut = self._drawn(self._still)
        self._wide = self._drawn(replace(self._still, mouth=wide))
        bare = self._drawn(replace(self._still, hands_score=torch.zeros_like(self._still.hands_score)))
        moving = (_moved(self._shut, self._wide) | _moved(self._shut, bare)).float()
        grown = torch.nn.functional.max_pool2d(moving, 2 * MARGIN_PIXELS + 1, stride=1, padding=MARGIN_PIXELS)
        self._steady = grown == 0  # (P, 1, size, size)

    def draw(self, mouth: Tensor) -> Tensor:
        """The person with these mouths, (N, 5), in the frames' poses."""
        return self._drawn(replace(self._still[self._row], mouth=mouth))

    def _drawn(self, motion: Motion) -> Tensor:
        return draw_all(self._people.repeat_interleave(len(motion)), motion, self._size)

    def offsets(self, pictures: Tensor) -> Tensor:
        """Where the faces are, (N, 2) pixels to the right of and below where the pose sequence has them: where eyes
        and nose of the drawing correlate best with the picture."""
        top, bottom, left, right = (round(edge * self._size) for edge in FACE_EDGES)
        reach = round(FACE_REACH * self._size)
        found = []
        for picture, row in zip(pictures, self._row, strict=True):
            face = _grey(self._shut[row])[top:bottom, left:right]
            around = _grey(picture)[top - reach : bottom + reach, left - reach : right + reach]
            fit = cv2.matchTemplate(around, face, cv2.TM_CCOEFF_NORMED)
            y, x = np.unravel_index(fit.argmax(), fit.shape)
            found.append((int(x) - reach, int(y) - reach))
        return torch.tensor(found)

    def openness(self, pictures: Tensor) -> Tensor:
        """How open the mouths are, (N,): the place of each picture between the shut and the wide open drawing, both
        laid over the picture's face, which is its projection on their difference."""
        places = []
        for picture, row, (x, y) in zip(pictures, self._row, self.offsets(pictures).tolist(), strict=True):
            shut = self._shut[row].float()
            way = (self._wide[row].float() - shut).roll((y, x), (1, 2))
            places.append(((picture.float() - shut.roll((y, x), (1, 2))) * way).sum() / way.square().sum())
        return torch.stack(places)

    def likeness_db(self, pictures: Tensor, drawn: Tensor) -> float:
        """Mean PSNR (dB) against the drawings where neither mouth nor arms are; 100 where nothing differs."""
        values = []
        for picture, drawing, row in zip(pictures, drawn, self._row, strict=True):
            error = (picture.float() - drawing.float()).square().mean(0)[self._steady[row, 0]]
            values.append(-10 * (error.mean() / 255**2).clamp(min=1e-10).log10())
        return float(torch.stack(values).mean())


def _grey(picture: Tensor) -> NDArray[np.float32]:
    """(3, h, w) uint8 -> (h, w)."""
    grey: NDArray[np.float32] = picture.float().mean(0).numpy()
    return grey


def _moved(a: Tensor, b: Tensor) -> Tensor:
    """Where pictures (P, 3, h, w) differ visibly: (P, 1, h, w)."""
    return (a.int() - b.int()).abs().amax(1, keepdim=True) > 8


def border_ratio(pictures: Tensor) -> float:
    """Mean change from frame to frame where clips meet over that inside clips, of all frames (F, 3, h, w) uint8."""
    changes = torch.stack([(b.float() - a.float()).abs().mean() for a, b in pairwise(pictures)])
    border = torch.arange(1, len(pictures)) % CLIP_FRAMES == 0
    return float(changes[border].mean() / changes[~border].mean().clamp(min=1e-6))


def load_generator(folder: Path, settings: Settings, device: str) -> ClipGenerator:
    """The model in ``folder`` as the server would run it with ``settings``, on ``device``."""
    description = ModelDescription.from_mapping(
        {"weights": str(folder.absolute()), "motion_module": None, "base_unet": None}, Path()
    )
    dtype = fitting_dtype(device) if settings.dtype == "auto" else settings.dtype
    chosen = GeneratorSettings.for_device(settings, settings.clip_format, device, dtype)
    return ClipGenerator.load(description, chosen, log.info)


def render(generator: ClipGenerator, avatar: str, samples: F32Array, chained: bool = True) -> Tensor:
    """What the model shows while these samples are heard, as live, where silence comes before: (F, 3, H, W) uint8.

    ``chained`` starts each clip from the last latent of the one before."""
    format = generator.settings.format
    window = np.zeros(format.history_frames * SAMPLE_RATE // FPS + format.clip_frames * SAMPLE_RATE // FPS, np.float32)
    before = RenderRequest(avatar, window, format.clip_frames, pose_position=LOOP_FRAMES - format.clip_frames, seed=0)
    latent: F16Array = generator.generate_rgb(before)[1]
    parts = []
    for clip in Clipper(format).push(samples):
        given = latent if chained else None
        request = RenderRequest(avatar, clip.window, clip.frames, clip.first_frame, seed=0, init_latent=given)
        frames, latent = generator.generate_rgb(request)
        parts.append(torch.from_numpy(frames).permute(0, 3, 1, 2))
    return torch.cat(parts)


@dataclass(frozen=True)
class Figures:
    """What was measured of one person and voice. Openings are means over frames, ``_ratio`` those of clips' borders."""

    correlation: float
    open_in_speech: float
    drawn_open_in_speech: float
    open_in_silence: float
    drawn_open_in_silence: float
    head_offset_px: float
    identity_db: float
    border_ratio: float
    drawn_border_ratio: float

    @classmethod
    def of(cls, pictures: Tensor, stage: Stage, talk: Talk) -> Figures:
        """Compares pictures of all frames of a talk with drawings of the same."""
        drawn = stage.draw(talk.mouth)
        own, true = stage.openness(pictures), stage.openness(drawn)
        speaking, silent = torch.from_numpy(talk.speaking), torch.from_numpy(talk.silent)
        return cls(
            correlation=correlation(own, true),
            open_in_speech=float(own[speaking].mean()),
            drawn_open_in_speech=float(true[speaking].mean()),
            open_in_silence=float(own[silent].mean()),
            drawn_open_in_silence=float(true[silent].mean()),
            head_offset_px=float(stage.offsets(pictures).float().norm(dim=1).mean()),
            identity_db=stage.likeness_db(pictures, drawn),
            border_ratio=border_ratio(pictures),
            drawn_border_ratio=border_ratio(drawn),
        )

    @classmethod
    def mean(cls, several: Sequence[Figures]) -> Figures:
        return cls(**{name: fmean(getattr(figures, name) for figures in several) for name in cls.__dataclass_fields__})

    def rounded(self) -> dict[str, float]:
        """By name, to three places; never a negative zero."""
        return {name: round(value, 3) + 0.0 for name, value in asdict(self).items()}


def held_out_voices(patterns: Sequence[str] | None) -> list[str]:
    """For each pattern the first voice of this machine that fits; of the default ones, those that fit none are passed
    over. Raises InputError where nothing fits."""
    known = available_voices()
    found = []
    for pattern in patterns or VOICES:
        voices = fnmatch.filter(known, pattern)
        if voices:
            found.append(voices[0])
        elif patterns:
            raise InputError(f"--voices: none of this machine's {len(known)} voices fits {pattern!r}")
    if not found:
        raise InputError(f"none of this machine's {len(known)} voices fits {', '.join(VOICES)}; install flite")
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of the model (default: the embedded one)")
    parser.add_argument("--voices", nargs="+", metavar="PATTERN", help=f"one voice each (default: {' '.join(VOICES)})")
    parser.add_argument("--seconds", type=float, default=10.0, help="speech of each voice (default 10)")
    parser.add_argument("--people", type=int, default=4, help="people other than the default avatar (default 4)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: those of configs/embedded.yaml)")
    parser.add_argument("--fresh", action="store_true", help="do not chain clips (use-init-latent off)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of what is said and of who the other people are")
    options = parser.parse_args(argv)
    if not 2.0 <= options.seconds <= 600.0:
        parser.error(f"--seconds is {options.seconds}; give 2 to 600")
    if options.people < 0:
        parser.error(f"--people is {options.people}; it must not be negative")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps is {options.steps}; it must be at least 1")
    start_log()
    settings = load_settings([], {})
    settings = replace(settings, steps=options.steps or settings.steps)
    chained = settings.use_init_latent and not options.fresh
    size = settings.clip_format.height
    talks = [speak(voice, options.seconds, options.seed) for voice in held_out_voices(options.voices)]
    generator = load_generator(options.model, settings, str(best_device(options.device)))
    poses, picture = (
        options.model / name if (options.model / name).exists() else EMBEDDED / name
        for name in ("poses", "reference.png")
    )

    generator.prepare_avatar(DEFAULT_AVATAR, picture, poses)
    stage = Stage(People.default(), range(len(talks[0].mouth)), size)
    voices: dict[str, Figures] = {}
    for talk in talks:
        log.info("%s", talk.voice)
        voices[talk.voice] = Figures.of(render(generator, DEFAULT_AVATAR, talk.samples, chained), stage, talk)

    others: dict[str, Figures] = {}
    crowd = People.sample(max(1, options.people), torch.Generator().manual_seed(options.seed))
    short = speak(talks[0].voice, PERSON_S, options.seed + 1)
    with TemporaryDirectory() as folder:
        for number in range(options.people):
            name = f"person {number + 1}"
            log.info("%s", name)
            person = crowd[number : number + 1]
            path = Path(folder, "person.png")
            to_image(draw_reference(person, 2 * size)[0]).save(path)
            generator.prepare_avatar(name, path, poses)
            stage = Stage(person, range(len(short.mouth)), size)
            others[name] = Figures.of(render(generator, name, short.samples, chained), stage, short)

    about = {"steps": settings.steps, "cfg": settings.cfg, "chained": chained, "seconds": options.seconds}
    _report(voices, others, about)
    return 0


def _report(voices: dict[str, Figures], others: dict[str, Figures], about: dict[str, object]) -> None:
    headings = (
        "voice or person",
        *("correlation", "open in speech", "(drawn)", "in silence", "(drawn)"),
        *("head px", "identity dB", "border ratio", "(drawn)"),
    )
    mean = Figures.mean(list(voices.values()))
    lines = {**voices, "mean of voices": mean, **others}
    rows = [(name, *figures.rounded().values()) for name, figures in lines.items()]
    summary: dict[str, object] = {**mean.rounded()}
    if others:
        summary["other_people"] = Figures.mean(list(others.values())).rounded()
    report(headings, rows, {**summary, "voices": list(voices), "people": len(others), **about})
