"""The rendered frames of a stream's clips, kept by media time until they are shown or their time has passed.

Knows no sound, no clock and no delay: what has been shown, and what can still be shown, are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, YuvFrames


@dataclass(slots=True)
class _Clip:
    """What is known of an expected clip. ``admitted``: to be rendered; ``lateness_s``: how late its last sound came,
    None if it was announced before its time had come, so that its rendering says nothing of the delay;
    ``blended``: what takes the place of its last frames; ``late``: how many of its frames came after their time;
    ``unshown``: how many others have not been shown."""

    admitted: bool
    lateness_s: float | None
    frames: YuvFrames | None = None
    blended: YuvFrames | None = None
    late: int = 0
    unshown: int = 0


class ClipStore:
    """Clips from their announcement until their sound is no longer kept.

    ``dropped``: rendered frames that came late, were skipped or fell to a cut. ``lost``: clips reported lost.
    """

    def __init__(self, format: ClipFormat) -> None:
        self._format = format
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
        return [clip.frames is not None for clip in self._clips.values()]

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

    def put(self, index: int, frames: YuvFrames, showable: int) -> None:
        """Takes the frames of an admitted clip; those before media frame ``showable`` are dropped and counted. Raises
        ValueError for a clip that was not admitted or came already."""
        clip = self._admitted(index)
        if clip is None:
            self.dropped += len(frames)
            return
        if clip.frames is not None:
            raise ValueError(f"the frames of clip {index} came twice")
        clip.late = min(len(frames), max(0, showable - index * self._format.clip_frames))
        self.dropped += clip.late
        if clip.late < len(frames):
            clip.frames = frames
            clip.unshown = len(frames) - clip.late

    def blend(self, index: int, frames: YuvFrames) -> None:
        """Replaces the last frames of a clip whose frames are kept, as far as they have not been shown."""
        clip = self._admitted(index)
        if clip is not None and clip.frames is not None:
            clip.blended = frames

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
        if clip is None or clip.frames is None or within < clip.late:
            return None
        clip.unshown -= 1
        if clip.blended is not None and (at := within - len(clip.frames) + len(clip.blended)) >= 0:
            return clip.blended[at]
        return clip.frames[within]

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
        if clip is not None and clip.frames is not None:
            self.dropped += clip.unshown
            clip.frames = clip.blended = None
