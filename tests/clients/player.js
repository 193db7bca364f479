// A page of somebody else's: Eyevinn's player, watching the WHEP endpoint that the page's address names.

import { WebRTCPlayer } from "@eyevinn/webrtc-player";

const endpoint = new URL(new URLSearchParams(location.search).get("whep"));
const video = document.querySelector("video");
// Without iceServers the player asks a public STUN server.
globalThis.player = new WebRTCPlayer({ video, type: "whep", iceServers: [] });
globalThis.player.load(endpoint);
