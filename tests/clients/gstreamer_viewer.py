"""Views a stream by WHEP with GStreamer's webrtcbin.

Usage: /usr/bin/python3 gstreamer_viewer.py URL_OF_THE_WHEP_ENDPOINT FRAMES

Prints one line of JSON once FRAMES frames were decoded, and ends the session. Runs in the system's Python, which has
GStreamer's bindings, and needs nothing else.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

PATIENCE_S = 40
CAPS = {
    "audio": "application/x-rtp,media=audio,encoding-name=OPUS,payload=96,clock-rate=48000,encoding-params=(string)2",
    "video": "application/x-rtp,media=video,encoding-name=VP8,payload=97,clock-rate=90000",
}


class Viewer:
    """One webrtcbin that asks for sound and picture, and counts what comes out of the decoders."""

    def __init__(self, endpoint: str, wanted: int) -> None:
        self.endpoint = endpoint
        self.wanted = wanted
        self.place: str | None = None
        self.seen: dict[str, Any] = {"frames": 0, "blocks": 0, "size": "", "version": Gst.version_string()}
        self.loop = GLib.MainLoop()
        self.failure: str | None = None
        self.pipeline = Gst.Pipeline.new()
        self.web = Gst.ElementFactory.make("webrtcbin")
        self.web.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
        self.pipeline.add(self.web)
        self.web.connect("pad-added", self.on_pad)
        for caps in CAPS.values():
            direction = GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY
            self.web.emit("add-transceiver", direction, Gst.Caps.from_string(caps))
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message::error", lambda _, message: self.fail(message.parse_error()[0].message))

    def run(self) -> dict[str, Any]:
        """What was seen. Raises RuntimeError if it did not come in time."""
        GLib.timeout_add_seconds(PATIENCE_S, self.fail, f"only {self.seen} in {PATIENCE_S} s")
        self.pipeline.set_state(Gst.State.PLAYING)
        self.web.emit("create-offer", None, Gst.Promise.new_with_change_func(self.on_offer))
        self.loop.run()
        if self.place is not None:
            urllib.request.urlopen(urllib.request.Request(self.place, method="DELETE")).close()
        self.pipeline.set_state(Gst.State.NULL)
        if self.failure is not None:
            raise RuntimeError(self.failure)
        return self.seen

    def fail(self, why: str) -> bool:
        self.failure = why
        self.loop.quit()
        return bool(GLib.SOURCE_REMOVE)

    def on_offer(self, promise: Any) -> None:
        # The reply must outlive the offer, which points into it.
        reply = promise.get_reply()
        offer = reply.get_value("offer")
        self.web.emit("set-local-description", offer, Gst.Promise.new())
        # Without any candidate: the server learns the address from the first check.
        headers = {"Content-Type": "application/sdp"}
        request = urllib.request.Request(self.endpoint, offer.sdp.as_text().encode(), headers)
        try:
            with urllib.request.urlopen(request) as response:
                self.place = urllib.parse.urljoin(self.endpoint, response.headers["Location"])
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            self.fail(f"{error.code}: {error.read().decode()}")
            return
        _, message = GstSdp.SDPMessage.new_from_text(text)
        answer = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
        self.web.emit("set-remote-description", answer, Gst.Promise.new())

    def on_pad(self, _: Any, pad: Any) -> None:
        if pad.direction is not Gst.PadDirection.SRC:
            return
        media = pad.get_current_caps().get_structure(0).get_string("media")
        decoding = "rtpopusdepay ! opusdec" if media == "audio" else "rtpvp8depay ! vp8dec"
        branch = Gst.parse_bin_from_description(f"queue ! {decoding} ! fakesink name=sink signal-handoffs=true", True)
        branch.get_by_name("sink").connect("handoff", self.on_sound if media == "audio" else self.on_frame)
        self.pipeline.add(branch)
        branch.sync_state_with_parent()
        pad.link(branch.get_static_pad("sink"))

    def on_sound(self, *_: Any) -> None:
        self.seen["blocks"] += 1

    def on_frame(self, sink: Any, _: Any, pad: Any) -> None:
        caps = pad.get_current_caps().get_structure(0)
        self.seen["size"] = f"{caps.get_value('width')}x{caps.get_value('height')}"
        self.seen["frames"] += 1
        if self.seen["frames"] >= self.wanted:
            self.loop.quit()


if __name__ == "__main__":
    Gst.init(None)
    sys.stdout.write(json.dumps(Viewer(sys.argv[1], int(sys.argv[2])).run()) + "\n")
