"""All outputs of this server: begins and ends them, and tells of them. An output ends with its stream."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from echo_rtc.errors import ConflictError, UnknownStreamError
from echo_rtc.outputs.facts import OutputFacts, OutputState
from echo_rtc.outputs.hosts import HostRules, shown
from echo_rtc.outputs.output import Output, OutputCounters
from echo_rtc.outputs.pushing import Pusher
from echo_rtc.outputs.whip import Endpoint
from echo_rtc.rtc.network import Network
from echo_rtc.stream.stream import Stream


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """The hosts that streams may be pushed to, and how many outputs there may be, in all and of one stream."""

    rules: HostRules = field(default_factory=HostRules)
    most: int = 16
    most_of_stream: int = 4
    network: Network = field(default_factory=Network)


class Outputs:
    """The outputs of all streams."""

    def __init__(self, options: OutputOptions, find: Callable[[str], Stream | None]) -> None:
        """``find``: the live stream of an id."""
        self._options = options
        self._find = find
        self._outputs: dict[str, dict[str, Output]] = {}
        """By the streams' ids and their own."""
        self._endpoints: dict[str, Endpoint] = {}
        self._watched: set[str] = set()
        """The streams whose end is waited for, by id."""
        self._ending: set[asyncio.Task[None]] = set()
        self.counters = OutputCounters()

    @property
    def states(self) -> Mapping[str, int]:
        """How many there are in each state."""
        states = [output.state for outputs in self._outputs.values() for output in outputs.values()]
        return {state.value: states.count(state) for state in OutputState if state is not OutputState.ENDED}

    def overview(self) -> Sequence[Mapping[str, object]]:
        """For operators, as JSON: all outputs, with the ids of their streams."""
        return [
            {**output.facts.as_json(), "stream_id": stream_id}
            for stream_id, outputs in self._outputs.items()
            for output in outputs.values()
        ]

    def start(self, stream_id: str, endpoint: str, bearer: str | None) -> OutputFacts:
        """Begins to push a stream. Raises OutputRefusedError where that must not be, ConflictError where it is done
        already or there are as many as there may be, UnknownStreamError."""
        target = Endpoint.of(endpoint, bearer, self._options.rules)
        stream = self._find(stream_id)
        if stream is None or stream.ended.done():
            raise UnknownStreamError("there is no such stream; it may have ended")
        self._require_room(stream_id, target)
        self._forget_failed(stream_id, target)
        pusher = Pusher(stream, target, self._options.rules, self._options.network)
        output = Output(secrets.token_urlsafe(12), shown(target.url), pusher.connect, stream.log, self.counters)
        self._outputs.setdefault(stream_id, {})[output.id] = output
        self._endpoints[output.id] = target
        if stream_id not in self._watched:
            self._watched.add(stream_id)
            stream.ended.add_done_callback(lambda _: self._stream_ended(stream_id))
        output.start()
        return output.facts

    def of(self, stream_id: str) -> Sequence[OutputFacts]:
        """The outputs of a stream, in the order in which they began."""
        return [output.facts for output in self._outputs.get(stream_id, {}).values()]

    def find(self, stream_id: str, output_id: str) -> OutputFacts | None:
        """The output of this id of a stream."""
        output = self._outputs.get(stream_id, {}).get(output_id)
        return None if output is None else output.facts

    async def stop(self, stream_id: str, output_id: str) -> bool:
        """Ends an output and waits until nothing of it is left; whether there was one."""
        output = self._take(stream_id, output_id)
        if output is None:
            return False
        await output.close()
        return True

    async def close(self) -> None:
        """Ends all there are and waits for them."""
        for stream_id in tuple(self._outputs):
            self._stream_ended(stream_id)
        while self._ending:
            await asyncio.wait(self._ending)

    def _require_room(self, stream_id: str, target: Endpoint) -> None:
        """Raises ConflictError. Outputs that have failed count for nothing: they hold no connection."""
        own = self._going_on(stream_id)
        if any(self._endpoints[each].url == target.url for each in own):
            raise ConflictError("the stream is pushed there already; end that output by DELETE")
        if len(own) >= self._options.most_of_stream:
            raise ConflictError(
                f"the stream has {len(own)} outputs, which is as many as --max-outputs-per-stream allows; delete one"
            )
        if sum(len(self._going_on(each)) for each in self._outputs) >= self._options.most:
            raise ConflictError(f"there are {self._options.most} outputs, which is as many as --max-outputs allows")

    def _going_on(self, stream_id: str) -> list[str]:
        outputs = self._outputs.get(stream_id, {}).values()
        return [output.id for output in outputs if output.state is not OutputState.FAILED]

    def _forget_failed(self, stream_id: str, target: Endpoint) -> None:
        """Makes room for a new output: what failed at the same endpoint is replaced by it, and of the others as many
        are kept as a stream may have outputs."""
        failed = [each.id for each in self._outputs.get(stream_id, {}).values() if each.state is OutputState.FAILED]
        same = [each for each in failed if self._endpoints[each].url == target.url]
        others = [each for each in failed if each not in same]
        for output_id in (*same, *others[: -self._options.most_of_stream]):
            self._take(stream_id, output_id)

    def _take(self, stream_id: str, output_id: str) -> Output | None:
        own = self._outputs.get(stream_id, {})
        output = own.pop(output_id, None)
        if output is not None:
            del self._endpoints[output_id]
        if not own:
            self._outputs.pop(stream_id, None)
        return output

    def _stream_ended(self, stream_id: str) -> None:
        self._watched.discard(stream_id)
        for output_id in tuple(self._outputs.get(stream_id, {})):
            output = self._take(stream_id, output_id)
            assert output is not None
            task = asyncio.create_task(output.close(), name=f"end output {output_id[:8]}")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
