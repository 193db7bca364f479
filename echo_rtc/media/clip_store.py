"""The rendered frames of a stream's clips, kept by media time until they are shown or their time has passed.

Knows no sound, no clock and no delay: what has been shown, and what can still be shown, are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, YuvFrames


@dataclass(slots=True)
class _Clip:
    """What is known of an expected clip. ``admitted``: to be rendered; ``lateness_s``: how late its last sound came,
    None if it was announced before its time had come, so that its rendering says nothing of the delay;
    ``came``: how many of its frames have come; ``need_s``: the longest that any of them took, less the time from the
    clip's first frame to it; ``pictures``: by their number within the clip, those that can still be shown."""

    admitted: bool
    lateness_s: float | None
    came: int = 0
    need_s: float = 0.0
    pictures: dict[int, YuvFrames] = field(default_factory=dict)


class ClipStore:
    """Clips from their announcement until their sound is no longer kept.

    ``dropped``: rendered frames that came late, were skipped or fell to a cut. ``lost``: clips reported lost.
    """

    def __init__(self, clip_format: ClipFormat) -> None:
        self._format = clip_format
        self._clips: dict[int, _Clip] = {}
        self._oldest_clip = 0
        self._oldest_frames = 0
        self._next_clip = 0
        self.dropped = 0
        self.lost = 0

    def __len__(self) -> int:
        """How many clips are known."""
        return len(self._clips)

    @property
    def rendered_clips(self) -> list[bool]:
        """Of each clip that is known, the oldest first, whether its frames are kept."""
        return [bool(clip.pictures) for clip in self._clips.values()]

    def expect(self, clip: AudioClip, rendered: bool, lateness_s: float | None) -> None:
        """Announces the next clip; see :meth:`Playout.expect`."""
        frames = self._format.clip_frames
        if clip.index != self._next_clip:
            raise ValueError(f"clip {clip.index} was announced; clip {self._next_clip} is next")
        if clip.first_frame + clip.frames != (clip.index + 1) * frames:
            raise ValueError(f"clip {clip.index} ends at frame {clip.first_frame + clip.frames}; clips have {frames}")
        self._clips[clip.index] = _Clip(rendered, lateness_s)
        self._next_clip += 1

    def lateness_s(self, index: int) -> float | None:
        """How late the last sound of an admitted clip came; 0 for one that was forgotten, None for one that was
        announced before its time had come. Raises ValueError."""
        clip = self._admitted(index)
        return clip.lateness_s if clip else 0.0

    def put(self, index: int, frames: YuvFrames, showable: int, render_s: float) -> float | None:
        """Takes the next frames of an admitted clip, which came after ``render_s`` of rendering; those before media
        frame ``showable`` are dropped and counted. With the clip's last frame, returns how long after the clip was
        handed over its first frame could have been shown, so that none of the others would have been late (s). Raises
        ValueError for a clip that was not admitted, or has more frames."""
        clip = self._admitted(index)
        if clip is None:
            self.dropped += len(frames)
            return None
        count = self._format.clip_frames
        if clip.came == count:
            raise ValueError(f"the frames of clip {index} came twice")
        if clip.came + len(frames) > count:
            raise ValueError(f"clip {index} has {clip.came + len(frames)} frames; {count} are expected")
        late = min(len(frames), max(0, showable - index * count - clip.came))
        self.dropped += late
        clip.pictures |= {clip.came + at: frames[at] for at in range(late, len(frames))}
        clip.need_s = max(clip.need_s, render_s - clip.came / self._format.fps)
        clip.came += len(frames)
        return clip.need_s if clip.came == count else None

    def blend(self, index: int, frames: YuvFrames) -> None:
        """Replaces the last frames of a clip that has come, as far as they can still be shown."""
        clip = self._admitted(index)
        if clip is None:
            return
        first = self._format.clip_frames - len(frames)
        clip.pictures |= {first + at: picture for at, picture in enumerate(frames) if first + at in clip.pictures}

    def lose(self, index: int) -> None:
        """The frames of an admitted clip will not come."""
        self._admitted(index)
        self.lost += 1

    def admitted(self, frame: int) -> bool | None:
        """Whether the clip of media frame ``frame`` is to be rendered; None if it has not been announced."""
        clip = self._clips.get(frame // self._format.clip_frames)
        return clip.admitted if clip else None

    def idle(self, first: int, last: int) -> bool:
        """Whether the gate took all clips of media frames ``first`` to ``last`` for silence."""
        count = self._format.clip_frames
        return all(self.admitted(index * count) is False for index in range(first // count, last // count + 1))

    def take(self, frame: int) -> YuvFrames | None:
        """The picture of media frame ``frame``, which is shown now; None if it is not there."""
        index, within = divmod(frame, self._format.clip_frames)
        clip = self._clips.get(index)
        return None if clip is None else clip.pictures.pop(within, None)

    def release(self, shown: int) -> None:
        """Releases the frames of clips that ended with media frame ``shown`` or before."""
        while self._oldest_frames < self._next_clip:
            if (self._oldest_frames + 1) * self._format.clip_frames > shown + 1:
                return
            self._release(self._clips.get(self._oldest_frames))
            self._oldest_frames += 1

    def forget(self, base: int) -> None:
        """Forgets clips whose sound ended with media sample ``base`` or before."""
        while self._oldest_clip < self._next_clip:
            end = self._format.sample_of_frame((self._oldest_clip + 1) * self._format.clip_frames, MEDIA_RATE)
            if end > base:
                return
            self._release(self._clips.pop(self._oldest_clip))
            self._oldest_clip += 1

    def _admitted(self, index: int) -> _Clip | None:
        """The admitted clip ``index``; None if its time passed so long ago that it was forgotten."""
        if not 0 <= index < self._next_clip:
            raise ValueError(f"clip {index} was never announced; clip {self._next_clip} is next")
        clip = self._clips.get(index)
        if clip is not None and not clip.admitted:
            raise ValueError(f"clip {index} was announced as silence; no frames are expected")
        return clip

    def _release(self, clip: _Clip | None) -> None:
        if clip is not None:
            self.dropped += len(clip.pictures)
            clip.pictures.clear()
