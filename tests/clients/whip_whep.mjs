// Publishes a tone by WHIP and views the avatar by WHEP, with the clients of npm's whip-whep on Google's WebRTC
// library (@roamhq/wrtc). Usage: node whip_whep.mjs SERVER_URL NAME FRAMES
// Prints one line of JSON once FRAMES frames were decoded, and ends both sessions.

import wrtc from "@roamhq/wrtc";
import { WHIPClient } from "whip-whep/whip.js";
import { WHEPClient } from "whip-whep/whep.js";

const { RTCPeerConnection, MediaStream, nonstandard } = wrtc;
const [server, name, wanted] = process.argv.slice(2);
const RATE = 48000;
const BLOCK = RATE / 100;

// This WHEP client sends its candidates without the ETag, which the server refuses with 428, and connects without them.
process.on("unhandledRejection", (error) => {
  if (!/status 428/.test(error.message)) {
    throw error;
  }
});

function microphone() {
  const source = new nonstandard.RTCAudioSource();
  const samples = new Int16Array(BLOCK);
  let spoken = 0;
  const timer = setInterval(() => {
    for (let i = 0; i < BLOCK; i += 1) {
      samples[i] = 12000 * Math.sin((2 * Math.PI * 300 * (spoken + i)) / RATE);
    }
    spoken += BLOCK;
    source.onData({ samples, sampleRate: RATE, bitsPerSample: 16, channelCount: 1, numberOfFrames: BLOCK });
  }, 10);
  return { track: source.createTrack(), stop: () => clearInterval(timer) };
}

const voice = microphone();
const publisher = new RTCPeerConnection();
publisher.addTransceiver(voice.track, { direction: "sendonly", streams: [new MediaStream()] });
const whip = new WHIPClient();
await whip.publish(publisher, `${server}/whip/${name}`);

const viewer = new RTCPeerConnection();
viewer.addTransceiver("audio", { direction: "recvonly" });
viewer.addTransceiver("video", { direction: "recvonly" });
const seen = { frames: 0, loudest: 0, size: "" };
const done = new Promise((resolve) => {
  viewer.ontrack = ({ track }) => {
    if (track.kind === "audio") {
      new nonstandard.RTCAudioSink(track).ondata = ({ samples }) => {
        seen.loudest = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), seen.loudest);
      };
      return;
    }
    new nonstandard.RTCVideoSink(track).onframe = ({ frame }) => {
      seen.size = `${frame.width}x${frame.height}`;
      seen.frames += 1;
      if (seen.frames === Number(wanted)) {
        resolve();
      }
    };
  };
});
const whep = new WHEPClient();
await whep.view(viewer, `${server}/whep/${name}`);
await done;
await whep.stop();
await whip.stop();
voice.stop();
process.stdout.write(`${JSON.stringify(seen)}\n`, () => process.exit(0));
