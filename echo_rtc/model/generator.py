"""From one clip's audio to its frames: conditioning, diffusion, decoding, colour.

What belongs to an avatar (reference bank, pose features) is prepared once; what belongs to a stream arrives with each
request and leaves with each result, so that any generator can take any clip. Knows nothing of processes, of when a
clip is due or of where it is shown.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_rtc.clips import F16Array, F32Array, U8Array, YuvFrames
from echo_rtc.errors import InputError, RenderError, SettingsError
from echo_rtc.model.attention import AttentionChoice
from echo_rtc.model.audio import SAMPLE_RATE, Wav2Vec2AudioEncoder, WhisperAudioEncoder, frame_tokens
from echo_rtc.model.captured import Captures, StaticBank
from echo_rtc.model.choreography import Choreography, Moment, activity
from echo_rtc.model.colour import fitted, rgb_bytes, yuv_planes
from echo_rtc.model.compiled import compile_networks
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.fused import FusedDenoiser
from echo_rtc.model.fused_decoder import FusedDecoder
from echo_rtc.model.image import load_reference_image
from echo_rtc.model.integers import Integers, Seen, watched, weight_limit
from echo_rtc.model.kernels import launch
from echo_rtc.model.kl_autoencoder import KLAutoencoder
from echo_rtc.model.leaps import cells_of, find_leaps
from echo_rtc.model.loading import Networks, load_networks
from echo_rtc.model.options import INTEGERS
from echo_rtc.model.options import GeneratorSettings as GeneratorSettings
from echo_rtc.model.photographs import refuse_photograph
from echo_rtc.model.pose_files import load_pose_sequence
from echo_rtc.model.quantised import HOPPER, check_fp8, quantise_linear
from echo_rtc.model.sampler import (
    Denoiser,
    Sampler,
    bridged,
    draw_noise,
    initial_latents,
    reference_latents,
)
from echo_rtc.model.trained import Trained
from echo_rtc.model.unet2d import Bank
from echo_rtc.model.unet3d import ClipConditions, KeysValues
from echo_rtc.rendering import Avatar, RenderRequest, RenderResult, TakeFrames

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    INTEGERS: torch.float32,
}
"""Number formats by name; of 8-bit integers, what is between the layers."""

_CHUNK = 16
"""Frames that the pose encoder and the autoencoder take at a time: bounds their memory."""

_DRAWING_THREADS = 4
"""Threads that draw poses for a model on a GPU: a clip waits for its drawings, and half of each is done outside of
Python's lock. A model on the CPU uses the cores itself."""

_BACKGROUND_CHUNK = 4
"""Frames whose poses are encoded at a time beside clips: a clip that comes meanwhile waits for them."""

_WATCHED_CLIPS = 3
"""Clips, spread over the pose sequence, that show what numbers layers are given."""

_IDLE_CHUNK = 4
"""Frames of an idle loop that are decoded at a time where a clip is not one piece."""


class AudioEncoder(Protocol):
    """Turns mono float32 audio (samples,) at 16 kHz into hidden states (positions, layers, width)."""

    @property
    def width(self) -> int: ...

    def hidden_states(self, audio: Tensor | F32Array) -> Tensor: ...


class PoseTrack:
    """The pose features of an avatar.

    Those of its speaking loop, once kept, stay on the device, (P, C0, h, w), each from when it is first asked for;
    others are drawn and encoded whenever they are asked for.
    """

    def __init__(self, choreography: Choreography, encode: Callable[[Sequence[Moment]], Tensor]) -> None:
        self.choreography, self._encode = choreography, encode
        self._kept: Tensor | None = None
        self._known: NDArray[np.bool_] | None = None

    def keep_as_used(self) -> None:
        """Keeps the features of the speaking loop as they are first asked for or :meth:`complete_some` makes them; all
        at once take a CPU half a minute, and drawing 72 s of them for a GPU 7 s."""
        self._known = np.zeros(len(self.choreography.speaking), bool)

    def complete_some(self) -> bool:
        """Encodes a few of those that are not kept yet; whether there were any."""
        missing = np.flatnonzero(~self._known) if self._known is not None else np.zeros(0, np.int64)
        self._complete(missing[:_BACKGROUND_CHUNK])
        return len(missing) > 0

    def _complete(self, numbers: NDArray[np.int64]) -> None:
        """Encodes what is kept as used and was never asked for, of these numbers in the loop."""
        if self._known is None:
            return
        missing = numbers[~self._known[numbers]]
        for start in range(0, len(missing), _CHUNK):
            part = missing[start : start + _CHUNK]
            made = self._encode([self.choreography.speaking[number] for number in part])
            if self._kept is None:
                shape = (len(self._known), *made.shape[1:])
                layout = torch.channels_last  # at once: a copy would take the memory twice
                self._kept = torch.empty(shape, dtype=made.dtype, device=made.device, memory_format=layout)
            self._kept[torch.from_numpy(part)] = made
            self._known[part] = True

    def kept(self, most_bytes: int) -> U8Array | None:
        """All features of the speaking loop, (P, h, w, C0 * bytes of a number) uint8; None unless all are kept, and
        where they have more than ``most_bytes``."""
        if self._kept is None or self._known is None or self._kept.nbytes > most_bytes or not self._known.all():
            return None
        found: U8Array = self._kept.permute(0, 2, 3, 1).contiguous().cpu().view(torch.uint8).numpy()
        return found

    def take(self, kept: U8Array, like: Tensor) -> bool:
        """Takes what :meth:`kept` gave for the same poses; False if these are not features of the shape (N, C0, h, w)
        and the number format of ``like``."""
        if self._known is None:
            return False
        count, (_, width, rows, columns) = len(self._known), like.shape
        if kept.dtype != np.uint8 or kept.shape != (count, rows, columns, width * like.element_size()):
            return False
        features = torch.from_numpy(np.ascontiguousarray(kept)).view(like.dtype).permute(0, 3, 1, 2)
        if self._kept is None:
            self._kept = features.to(like.device)
        else:  # its memory is there already, and is taken once only
            self._kept.copy_(features)
        self._known[:] = True
        return True

    def features(self, position: int, resting: int, start: int, shares: F32Array) -> Tensor:
        """The features (1, C0, F, h, w) of the frames from number ``position`` on, of a stream whose speaking loop
        begins at ``start`` and whose idle loop is at ``resting``; ``shares`` (F,) say how much each belongs to
        speech."""
        frames, length = len(shares), len(self.choreography.speaking)
        first = (position + start) % length
        numbers = np.arange(first, first + frames) % length
        moving = shares >= 1
        self._complete(np.unique(numbers[moving]))
        if self._kept is not None and moving.all():
            if first + frames <= length:
                return self._kept[first : first + frames].transpose(0, 1)[None]  # a view
            return self._kept[torch.from_numpy(numbers).to(self._kept.device)].transpose(0, 1)[None]
        drawn = np.flatnonzero(~moving) if self._kept is not None else np.arange(frames)
        moments = [
            self.choreography.moment(position + start + n, resting + n, float(shares[n])) for n in drawn.tolist()
        ]
        features = torch.cat([self._encode(moments[n : n + _CHUNK]) for n in range(0, len(moments), _CHUNK)])
        if len(drawn) < frames:
            assert self._kept is not None
            every = self._kept[torch.from_numpy(numbers).to(self._kept.device)]
            every[torch.from_numpy(drawn).to(every.device)] = features
            features = every
        return features.transpose(0, 1)[None]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is computed once per avatar: the reference's latents (1, C, h, w), its keys and values for every block, and
    the pose features."""

    reference: Tensor
    bank: KeysValues
    poses: PoseTrack


@dataclass(frozen=True, slots=True)
class PreparedClip:
    """What of a clip does not depend on its initial latent, and how many milliseconds it took."""

    audio: KeysValues
    pose: Tensor
    audio_ms: float


class Stopwatch:
    """Milliseconds of each stage of a clip. On a GPU the stages are marked by events in its stream, which are
    read at :meth:`finish` without waiting before."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.lap("")

    def lap(self, stage: str) -> None:
        """Ends the stage that began with the last lap (or with the stopwatch)."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, 1000.0 * time.perf_counter()))

    def latest(self) -> Callable[[], object]:
        """What waits until the device has passed the latest lap."""
        mark = self._marks[-1][1]
        return mark.synchronize if isinstance(mark, torch.cuda.Event) else lambda: None

    def finish(self) -> dict[str, float]:
        """Waits until the device has passed the last lap; the stages' times (ms), in their order."""
        stages: dict[str, float] = {}
        for (_, before), (stage, after) in itertools.pairwise(self._marks):
            if isinstance(after, torch.cuda.Event):
                assert isinstance(before, torch.cuda.Event)
                after.synchronize()
                taken = before.elapsed_time(after)
            else:
                assert not isinstance(before, torch.cuda.Event)
                taken = after - before
            stages[stage] = stages.get(stage, 0.0) + taken
        return stages


class ClipGenerator:
    """EchoMimic-V2 on one device. For one thread, but for :meth:`prepare`, which another may call meanwhile."""

    def __init__(
        self,
        networks: Networks,
        audio_encoder: AudioEncoder,
        settings: GeneratorSettings,
        trained: Trained | None = None,
    ) -> None:
        """Takes loaded networks, all on the settings' device, and what they were ``trained`` at. Raises SettingsError
        or InputError if they cannot make pictures of the settings' size or read the audio encoder's tokens."""
        self.settings = settings
        self.trained = trained = trained or Trained()
        if not settings.untrained:
            trained.check(settings.format, settings.steps)
        self.size = trained.render_size(settings.format)
        self.networks = networks
        self.audio_encoder = audio_encoder
        self.device = torch.device(settings.device)
        self._dtype = DTYPES[settings.dtype]
        self._avatars: dict[str, _Prepared] = {}
        self._samplers: dict[int, Sampler] = {}
        self._integers: Integers | None = None
        on_gpu = self.device.type == "cuda"
        self._drawing = ThreadPoolExecutor(_DRAWING_THREADS, "poses") if on_gpu else None
        self._side = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]
        attend = AttentionChoice(settings.attention)
        self._denoiser, decode = _quickest(networks, settings, attend)
        output = (settings.format.width, settings.format.height)
        if self.size != output:
            log.info("the model renders %d x %d; pictures are cropped and scaled to %d x %d", *self.size, *output)

        def decode_images(latents: Tensor) -> Tensor:
            return fitted(decode(latents), *output)

        self._decode_images = decode if self.size == output else decode_images
        recorded = settings.cuda_graphs and self.device.type == "cuda"
        self._captures, self._side_captures = Captures(recorded), Captures(recorded)
        self._preparing = threading.Lock()
        """An idle loop prepares its clips on the thread that renders, live clips are prepared on another; what both use
        is recorded once."""
        self._shelf = StaticBank()
        scale = networks.autoencoder.scale
        for name, pixels in zip(("width", "height"), self.size, strict=True):
            if pixels % scale:
                raise SettingsError(f"{name} is {pixels}; this model needs a multiple of {scale}")
        self._check_poses()
        if audio_encoder.width != networks.denoiser.config.audio_width:
            raise InputError(
                f"the audio encoder gives tokens of {audio_encoder.width} values, "
                f"but denoising_unet.cross_attention_dim is {networks.denoiser.config.audio_width}"
            )

    @classmethod
    def load(
        cls, description: ModelDescription, settings: GeneratorSettings, progress: Callable[[str], None]
    ) -> ClipGenerator:
        """Reads all networks of a model onto the settings' device. Raises InputError or SettingsError."""
        device, dtype = _device(settings), DTYPES[settings.dtype]
        encoder: WhisperAudioEncoder | Wav2Vec2AudioEncoder
        if settings.audio_model_type == "whisper":
            progress(f"reading the audio encoder from {description.audio_encoder}")
            encoder = WhisperAudioEncoder.load(description.audio_encoder, description.config.get("whisper"))
        else:
            progress(f"reading wav2vec2 from {description.wav2vec2}")
            encoder = Wav2Vec2AudioEncoder.load(description.wav2vec2, description.wav2vec2_adapter)
        # On the CPU it stays exact: it costs little there.
        encoder.to(device=device, dtype=torch.float32 if device.type == "cpu" else dtype).requires_grad_(False)
        networks = load_networks(description, device, dtype, progress, tiny=settings.vae == "tiny")
        return cls(networks, encoder, settings, Trained.from_config(description.config))

    def _check_poses(self) -> None:
        """Whether pose features are as large as latents. Raises InputError."""
        scale, pose = self.networks.autoencoder.scale, self.networks.pose.config.scale
        drawn = self.trained.pose_size or self.size
        if any(side // pose != pixels // scale for side, pixels in zip(drawn, self.size, strict=True)):
            raise InputError(
                f"pose_encoder.block_out_channels makes features of 1/{pose} of the sides of {drawn[0]} x {drawn[1]}, "
                f"but the autoencoder's latents are 1/{scale} of {self.size[0]} x {self.size[1]}"
            )

    def prepare_avatar(
        self, name: str, reference_image: Path, pose_dir: Path, idle_pose_dir: Path | None = None
    ) -> None:
        """Computes what clips of an avatar share. Raises InputError if its image or a pose cannot be read, or
        the image is none that the model knows."""
        for _ in self.avatar_pieces(name, reference_image, pose_dir, idle_pose_dir):
            pass

    @torch.inference_mode()
    def avatar_pieces(
        self, name: str, reference_image: Path, pose_dir: Path, idle_pose_dir: Path | None = None
    ) -> Iterator[None]:
        """The same in pieces that are shorter than a clip, so that clips can go between them."""
        image = load_reference_image(reference_image, *self.size)
        if self.trained.renderings_only and not self.settings.untrained:
            refuse_photograph(image)
        poses = load_pose_sequence(pose_dir)
        idle = None if idle_pose_dir is None else load_pose_sequence(idle_pose_dir)
        yield
        choreography = Choreography(
            poses, idle, self.settings.format.fps, self.trained.liveliness, zlib.crc32(image.tobytes())
        )
        reference = self.encode_image(image)
        bank = self.networks.denoiser.project_bank(self.stored(self.networks.reference(reference)))
        yield
        track = PoseTrack(choreography, self._pose_features)
        if not self.settings.low_ram:
            track.keep_as_used()
            if self.device.type == "cuda":
                with self._preparing, self._beside():
                    # Takes the memory for all of them: an avatar that does not fit fails here, not in a call.
                    track.complete_some()
        self._avatars[name] = _Prepared(reference, bank, track)
        if self.settings.dtype == INTEGERS and self._integers is None:
            self.use_integers(name)

    @torch.inference_mode()
    def use_integers(self, avatar: str) -> None:
        """Has the layers that cost most compute in 8-bit integers, which a few clips of an avatar fit to them, in
        place of float32. Raises SettingsError where there are none."""
        if self._integers is None:
            _check_integers(replace(self.settings, dtype=INTEGERS))
            roots = [self.networks.denoiser, *self._decoders()]
            self._integers = Integers(roots, self._watched(avatar, roots))
        self._integers.use(True)
        self.settings = replace(self.settings, dtype=INTEGERS)

    def use_floats(self) -> None:
        """Has float32 computed again."""
        if self._integers is not None:
            self._integers.use(False)
            self.settings = replace(self.settings, dtype="float32")

    def _decoders(self) -> list[torch.nn.Module]:
        """The network that decodes."""
        decoder = self.networks.tiny if self.settings.vae == "tiny" else self.networks.autoencoder
        return [decoder] if isinstance(decoder, torch.nn.Module) else []

    def _watched(self, avatar: str, roots: Sequence[torch.nn.Module]) -> Seen:
        """What the layers are given in a few clips of an avatar, in silence and in noise as loud as speech."""
        count = self.settings.format.clip_frames
        length = len(self._avatar(avatar).poses.choreography.speaking)
        noise = np.random.default_rng(0).normal(0.0, 0.1, self._window_samples(count)).astype(np.float32)
        request = RenderRequest(avatar, noise, count, pose_position=0, seed=0)
        seen: Seen = {}
        for number in range(_WATCHED_CLIPS):
            audio = noise * np.float32(number % 2 == 0)
            request = replace(request, audio=audio, pose_position=number * length // _WATCHED_CLIPS)
            prepared = self.prepare(request)
            with watched(roots, seen):
                latents = self._denoise(request, Stopwatch(self.device), prepared)
                for _ in self.images(latents):
                    pass
            request = replace(request, init_latent=_last_latent(latents))
        return seen

    @torch.inference_mode()
    def work_ahead(self) -> bool:
        """Does a little of what later clips would compute, a small part of a clip's time; False if all is done. Called
        on the thread that prepares clips."""
        with self._preparing, self._beside():
            return any(avatar.poses.complete_some() for avatar in tuple(self._avatars.values()))

    @torch.inference_mode()
    def poses(self, name: str, most_bytes: int) -> U8Array | None:
        """The features of all poses of an avatar, as bytes; None as long as any is missing, and for more than
        ``most_bytes``: a full-size model has gigabytes of them."""
        avatar = self._avatars.get(name)
        with self._preparing, self._beside():
            return None if avatar is None else avatar.poses.kept(most_bytes)

    @torch.inference_mode()
    def take_poses(self, name: str, poses: U8Array) -> bool:
        """Takes what :meth:`poses` gave for the same avatar, which spares encoding them; False if that does not fit."""
        track = self._avatar(name).poses
        with self._preparing, self._beside():
            return track.take(poses, self._pose_features([track.choreography.speaking[0]]))

    def forget_avatar(self, name: str) -> None:
        """Lets go of an avatar, if it was prepared."""
        self._avatars.pop(name, None)

    @property
    def avatars(self) -> tuple[str, ...]:
        """The names of the prepared avatars."""
        return tuple(self._avatars)

    @torch.inference_mode()
    def prepare(self, request: RenderRequest) -> PreparedClip:
        """Computes the tokens and the pose of a clip. Raises RenderError if the request cannot be rendered."""
        begun = time.perf_counter()
        self._latent_shape(request)
        poses = self._avatar(request.avatar).poses
        with self._preparing, self._beside():
            audio = self._audio(request.audio, request.frames)
            clip = self.settings.format
            shares = activity(request.audio, request.frames, clip.fps, clip.sample_rate)
            start = poses.choreography.start_of(request.seed)
            resting = request.pose_position if request.idle_position is None else request.idle_position
            pose = poses.features(request.pose_position, resting, start, shares)
        return PreparedClip(audio, pose, 1000.0 * (time.perf_counter() - begun))

    def generate(
        self, request: RenderRequest, prepared: PreparedClip | None = None, on_frames: TakeFrames | None = None
    ) -> RenderResult:
        """Renders one clip as YUV 4:2:0. Raises RenderError if the request cannot be.

        ``prepared`` is what :meth:`prepare` made of the same request, whose ``init_latent`` and ``steps`` may have
        changed since. With ``on_frames``, ``decode_frames`` frames at a time go there as soon as they are decoded, and
        the result has the last of them.
        """
        prepared = prepared or self.prepare(request)
        watch = Stopwatch(self.device)
        run = self.settings.decode_frames if on_frames is not None else 0
        final, runs = self._generate_yuv(request, watch, prepared, run)
        came, left = 0, list[YuvFrames]()
        for frames in runs:
            came += len(frames)
            if on_frames is not None and came < request.frames:
                on_frames(frames)
            else:
                left.append(frames)
        return RenderResult(YuvFrames.joined(left), final[-1], {"audio": prepared.audio_ms, **watch.finish()})

    @torch.inference_mode()
    def generate_rgb(self, request: RenderRequest) -> tuple[U8Array, F16Array]:
        """Renders one clip: its frames (F, H, W, 3) uint8 RGB and the final latent (C, h, w) of its last frame."""
        latents = self.latents(request)
        last = _last_latent(latents)
        frames: U8Array = torch.cat([rgb_bytes(part) for part in self.images(latents)]).cpu().numpy()
        return frames, last

    def idle_loop(self, name: str, chained: bool = True, seed: int = 0) -> Iterator[Avatar]:
        """Renders the idle poses with silence for its sound: what an avatar shows in silence. Comes
        in pieces, each computed when it is asked for: clips on a GPU, a few frames or none yet on a CPU, where others'
        clips wait for each piece.

        ``chained`` starts each clip from the last latent of the one before. The loop closes: its first clip is chained
        to a clip that ends where the loop does, and is not shown. Where the sequence is no multiple of the clip length,
        the last clip runs on into the beginning and its surplus is cut off.
        """
        length = len(self._avatar(name).poses.choreography.idle)
        count = self.settings.format.clip_frames
        silence = np.zeros(self._window_samples(count), dtype=np.float32)
        request = RenderRequest(name, silence, count, pose_position=(-count) % length, seed=seed)
        if chained:
            with torch.inference_mode():
                before = self.latents(request)
            request = replace(request, init_latent=_last_latent(before))
            yield Avatar(name, *self._no_frames())
        cells = []
        for position in range(0, length, count):
            left = min(count, length - position)
            for frames, final in self._clip_pieces(replace(request, pose_position=position)):
                kept = min(left, len(frames))
                left -= kept
                cells.append(cells_of(frames.y[:kept]))
                yield Avatar(name, frames[:kept], final[:kept])
            if chained:
                request = replace(request, init_latent=final[-1])
        yield Avatar(name, *self._no_frames(), find_leaps(np.concatenate(cells)))

    @torch.inference_mode()
    def _clip_pieces(self, request: RenderRequest) -> Iterator[tuple[YuvFrames, F16Array]]:
        """What :meth:`_generate_yuv` makes at once, in pieces of work; the first of them have no frames yet."""
        watch = Stopwatch(self.device)
        if self.device.type != "cpu":
            final, runs = self._generate_yuv(request, watch)
            yield YuvFrames.joined([*runs]), final
            return
        prepared = self.prepare(request)
        yield self._no_frames()
        latents = self._denoise(request, watch, prepared)[0].transpose(0, 1)  # (F, C, h, w)
        yield self._no_frames()
        for part in torch.split(latents.contiguous(), _IDLE_CHUNK):
            images = self._decode_images(part.to(self._dtype).contiguous(memory_format=torch.channels_last))
            yield YuvFrames(*(plane.numpy() for plane in yuv_planes(images))), part.to(torch.float16).numpy()

    def _no_frames(self) -> tuple[YuvFrames, F16Array]:
        """No frames, and no latents."""
        clip, autoencoder = self.settings.format, self.networks.autoencoder
        planes = (np.zeros((0, clip.height // n, clip.width // n), np.uint8) for n in (1, 2, 2))
        sides = (self.size[1] // autoencoder.scale, self.size[0] // autoencoder.scale)
        return YuvFrames(*planes), np.zeros((0, autoencoder.latent_channels, *sides), np.float16)

    # The stages, in the order of computation. Public where the parity check compares them.

    def encode_image(self, image: U8Array) -> Tensor:
        """The reference image's latents: (H, W, 3) uint8 RGB -> (1, C, h, w)."""
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        return self.networks.autoencoder.encode((pixels.float() / 127.5 - 1).to(self._dtype))

    def encode_poses(self, drawn: Tensor) -> Tensor:
        """Pose features: drawn poses (N, 3, H, W) in 0..1 -> (N, C0, h, w)."""
        features: Tensor = self.networks.pose(drawn.to(self.device, self._dtype))
        return features

    def stored(self, bank: Mapping[str, Tensor]) -> Bank:
        """The reference bank as the published code keeps it between the networks: rounded to float16, always."""
        return {name: value.half().to(self._dtype) for name, value in bank.items()}

    def audio_tokens(self, audio: F32Array, frames: int) -> Tensor:
        """The tokens (1, F, T, W) of the last ``frames`` frames of audio at the format's sample rate.

        What comes before them is history: it is encoded with them, and its own tokens are dropped.
        """
        return self._encode_audio(_to_device(self._sound(audio), self.device), len(audio), frames)

    def _sound(self, audio: F32Array) -> Tensor:
        """The same sound at the rate that the audio encoder reads, on the CPU."""
        return torch.from_numpy(resample(audio, self.settings.format.sample_rate, SAMPLE_RATE))

    def _encode_audio(self, sound: Tensor, samples: int, frames: int) -> Tensor:
        """The tokens of sound on the device, which was ``samples`` long at the format's rate."""
        clip = self.settings.format
        history = max(0, round(Fraction(samples * clip.fps, clip.sample_rate)) - frames)
        hidden = self.audio_encoder.hidden_states(sound)
        return frame_tokens(hidden, frames, clip.fps, self.settings.audio_margin, history)[None].to(self._dtype)

    def _audio(self, audio: F32Array, frames: int) -> KeysValues:
        """The keys and values of the last ``frames`` frames of audio."""
        samples, names = len(audio), [block.name for block in self.networks.denoiser.transformer_blocks()]

        def encode(sound: Tensor) -> list[Tensor]:
            given = self.networks.denoiser.project_audio(self._encode_audio(sound, samples, frames))
            return [value for name in names for value in given.blocks[name]]

        sound = _to_device(self._sound(audio), self.device)
        values: list[Tensor] = self._side_captures.run(("audio", samples, frames), encode, sound)
        if self._side_captures.active:  # the next clip's are made while this one waits for its turn
            values = [value.clone() for value in values]
        return KeysValues(dict(zip(names, zip(values[::2], values[1::2], strict=True), strict=True)))

    @torch.inference_mode()
    def latents(self, request: RenderRequest, prepared: PreparedClip | None = None) -> Tensor:
        """The final latents of a clip, (1, C, F, h, w) float32; overwritten by the next clip. ``prepared``: as in
        :meth:`generate`."""
        return self._denoise(request, Stopwatch(self.device), prepared)

    def images(self, latents: Tensor, run: int = _CHUNK) -> Iterator[Tensor]:
        """Final latents (1, C, F, h, w) -> images (n, 3, H, W) in about -1..1, in parts of ``run`` frames, each to be
        used before the next is asked for."""

        def decode(part: Tensor) -> Tensor:
            return self._decode_images(part.to(self._dtype).contiguous(memory_format=torch.channels_last))

        folded = latents[0].transpose(0, 1).contiguous()
        return (self._captures.run(("decode",), decode, part) for part in torch.split(folded, run))

    def sampler(self, steps: int) -> Sampler:
        """The sampler of ``steps`` steps, made once."""
        if steps not in self._samplers:
            settings, start = self.settings, self.trained.start_timestep
            self._samplers[steps] = Sampler(self._denoiser, steps, settings.cfg, settings.guided_steps, start)
        return self._samplers[steps]

    def _pose_features(self, moments: Sequence[Moment]) -> Tensor:
        """(N, C0, h, w) of N moments."""
        size = self.trained.pose_size or self.size
        draw: Callable[[Moment], U8Array] = lambda moment: moment.draw(*size)  # noqa: E731
        drawn = [draw(moment) for moment in moments] if self._drawing is None else [*self._drawing.map(draw, moments)]
        if self.device.type == "cuda":
            # Always as many at a time: the vendor's library searches for the quickest algorithm at each new shape,
            # which takes longer than a clip.
            drawn += [np.zeros_like(drawn[0])] * (-len(drawn) % _CHUNK)
        images = torch.from_numpy(np.stack(drawn)).to(self.device).permute(0, 3, 1, 2)  # (N, 3, H, W)
        return self.encode_poses(images.to(self._dtype) / 255)[: len(moments)]

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Work that runs on the device beside the clip being rendered, and is done at the end."""
        if self._side is None:
            yield
            return
        with torch.cuda.stream(self._side):
            yield
        self._side.synchronize()

    def _denoise(self, request: RenderRequest, watch: Stopwatch, prepared: PreparedClip | None = None) -> Tensor:
        """The final latents (1, C, F, h, w) float32 of a clip."""
        shape = self._latent_shape(request)
        prepared = prepared or self.prepare(request)
        bank = self._avatar(request.avatar).bank
        if self._captures.active:
            bank = self._shelf.put(bank)
        chained = None if request.init_latent is None else torch.tensor(request.init_latent)
        if self.trained.start_timestep is None:
            start = _to_device(initial_latents(draw_noise(shape, request.seed), chained), self.device)
        else:
            start = reference_latents(self._avatar(request.avatar).reference, request.frames, chained)
        steps = request.steps or self.settings.steps
        names = list(prepared.audio.blocks)
        # Where the clip is chained it may begin at the last latent of the one before; elsewhere all clips are alike.
        joins = self.trained.bridged and chained is not None

        def denoise(latents: Tensor, pose: Tensor, *audio: Tensor) -> Tensor:
            pairs = KeysValues(dict(zip(names, zip(audio[::2], audio[1::2], strict=True), strict=True)))
            final = latents
            for step in self.sampler(steps).steps(latents, ClipConditions(pairs, bank, pose)):
                final = step.latents
            return bridged(final, latents[0, :, 0] if joins else None) if self.trained.bridged else final

        audio = [value for name in names for value in prepared.audio.blocks[name]]
        latents: Tensor = self._captures.run(("denoise", steps, joins), denoise, start, prepared.pose, *audio)
        watch.lap("denoise")
        return latents

    @torch.inference_mode()
    def _generate_yuv(
        self, request: RenderRequest, watch: Stopwatch, prepared: PreparedClip | None = None, run: int = 0
    ) -> tuple[F16Array, Iterator[YuvFrames]]:
        """The final latents (F, C, h, w) of a clip's frames, and the frames, ``run`` at a time (0: as many as fit into
        memory). The latents are there once the first frames are."""
        latents = self._denoise(request, watch, prepared)
        final = _to_host(latents[0].transpose(0, 1).to(torch.float16))
        return final.numpy(), self._decoded(latents, watch, run or _CHUNK)

    @torch.inference_mode()
    def _decoded(self, latents: Tensor, watch: Stopwatch, run: int) -> Iterator[YuvFrames]:
        """The frames of final latents, ``run`` at a time, each as soon as the device has them. A GPU is given all of
        its work at once; the CPU does it piece by piece."""
        waiting: list[tuple[Callable[[], object], list[Tensor]]] = []
        for images in self.images(latents, run):
            watch.lap("decode")
            planes = [_to_host(plane) for plane in yuv_planes(images)]
            watch.lap("colour")
            waiting.append((watch.latest(), planes))
            if self.device.type == "cpu":
                yield _host_frames(*waiting.pop())
        for done, planes in waiting:
            yield _host_frames(done, planes)

    def _avatar(self, name: str) -> _Prepared:
        if name not in self._avatars:
            raise RenderError(f"the avatar {name!r} is not prepared; prepared are {', '.join(self._avatars) or 'none'}")
        return self._avatars[name]

    def _latent_shape(self, request: RenderRequest) -> tuple[int, ...]:
        """(1, C, F, h, w). Raises RenderError if the request does not fit the model."""
        autoencoder = self.networks.autoencoder
        if request.frames < 1 or (request.steps is not None and request.steps < 1):
            raise RenderError(f"a clip of {request.frames} frames in {request.steps} steps cannot be rendered")
        height, width = self.size[1] // autoencoder.scale, self.size[0] // autoencoder.scale
        one = (autoencoder.latent_channels, height, width)
        if request.init_latent is not None and request.init_latent.shape != one:
            raise RenderError(f"the init latent has shape {request.init_latent.shape}; this model needs {one}")
        return (1, one[0], request.frames, height, width)

    def _window_samples(self, frames: int) -> int:
        """Samples of the history and ``frames`` frames at the format's sample rate."""
        clip = self.settings.format
        return round(clip.history_s * clip.sample_rate) + clip.sample_of_frame(frames, clip.sample_rate)


def _quickest(
    networks: Networks, settings: GeneratorSettings, attend: AttentionChoice
) -> tuple[Denoiser, Callable[[Tensor], Tensor]]:
    """The denoising UNet and the decoder that the settings choose. Raises SettingsError."""
    on_gpu = torch.device(settings.device).type == "cuda"
    if settings.kernels == "triton" and not (on_gpu and launch.AVAILABLE):
        missing = "Triton, which is not installed" if on_gpu else "a CUDA device"
        raise SettingsError(f"kernels is triton, which needs {missing}; choose auto or torch")
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # shapes never change: the quickest algorithm is worth a search
    fused = on_gpu and settings.kernels != "torch" and launch.AVAILABLE and not settings.compile_unet
    eight_bits = False
    if settings.quantize_fp8:
        device = torch.device(settings.device)
        check_fp8(device)
        eight_bits = (
            fused and settings.quantize_fp8_mode == "auto" and torch.cuda.get_device_capability(device) >= HOPPER
        )
        if not eight_bits:
            fused = False
            mode = "dynamic" if settings.quantize_fp8_mode == "auto" else settings.quantize_fp8_mode
            quantise_linear(networks.denoiser, mode)
    decode = networks.autoencoder.decode
    if settings.vae == "tiny":
        if networks.tiny is None:
            raise SettingsError("vae is tiny, but this model has no distilled decoder; choose full")
        decode = networks.tiny.decode
    if not fused and settings.attention == "xformers":
        raise SettingsError(
            "attention is xformers, which our own kernels on a GPU use; the plain networks (the CPU, kernels torch, "
            "compile_unet, torchao's 8 bits) have PyTorch's attention; leave attention out"
        )
    if settings.compile_unet:
        return networks.denoiser, compile_networks(networks.denoiser, decode, settings.compile_unet_mode)
    if not fused:
        return networks.denoiser, decode
    if isinstance(networks.autoencoder, KLAutoencoder) and settings.vae == "full":
        decode = FusedDecoder(networks.autoencoder, attend, eight_bits).decode
    return FusedDenoiser(networks.denoiser, attend, eight_bits), decode


def _check_integers(settings: GeneratorSettings) -> None:
    """Raises SettingsError, in one sentence, where 8-bit integers cannot be computed."""
    if torch.device(settings.device).type != "cpu":
        raise SettingsError(
            f"dtype is {INTEGERS}, which is for the CPU, but the device is {settings.device}; "
            "leave it out and set quantize_fp8"
        )
    weight_limit()


def _to_device(value: Tensor, device: torch.device) -> Tensor:
    """An asynchronous copy of a CPU tensor on the device."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def _host_frames(done: Callable[[], object], planes: Sequence[Tensor]) -> YuvFrames:
    """Frames whose planes are on their way to the CPU, once ``done`` says that they are there."""
    done()
    return YuvFrames(*(plane.numpy() for plane in planes))


def _to_host(value: Tensor) -> Tensor:
    """A copy on the CPU, there once the device has come this far."""
    if not value.is_cuda:
        return value
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return host.copy_(value, non_blocking=True)


def resample(audio: F32Array, rate: int, target: int) -> F32Array:
    """Mono float32 audio (samples,) at ``rate`` Hz -> at ``target`` Hz, of the same duration to within a sample."""
    if rate == target:
        return audio
    frame = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=target)
    parts = [part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]]
    length = round(Fraction(len(audio) * target, rate))
    joined = np.concatenate(parts)[:length] if parts else np.zeros(0, dtype=np.float32)
    return np.pad(joined, (0, length - len(joined))).astype(np.float32, copy=False)


def fitting_dtype(device: str) -> str:
    """The quickest number format that keeps the picture on ``device``: float16 on a GPU, bfloat16 on a CPU with
    instructions for it (AVX-512 BF16 or AMX), else float32."""
    if torch.device(device).type != "cpu":
        return "float16"
    # PyTorch offers these questions under private names only; one that it does not know is answered with no.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = any(getattr(torch.cpu, question, lambda: False)() for question in questions)
    return "bfloat16" if native else "float32"


def _device(settings: GeneratorSettings) -> torch.device:
    try:
        device = torch.device(settings.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise SettingsError(
                f"the device {settings.device} does not exist; PyTorch sees {torch.cuda.device_count()}"
            )
    except RuntimeError as error:
        raise SettingsError(f"the device {settings.device!r} is unknown; it must be cpu, cuda or cuda:N") from error
    if device.type == "cpu" and settings.dtype == "float16":
        raise SettingsError("dtype float16 needs a CUDA device; use float32 on the CPU")
    if settings.dtype == INTEGERS:
        _check_integers(settings)
    return device


def _last_latent(latents: Tensor) -> F16Array:
    """(1, C, F, h, w) -> the last frame's (C, h, w), float16 on the CPU."""
    last: F16Array = latents[0, :, -1].to("cpu", torch.float16).numpy()
    return last
