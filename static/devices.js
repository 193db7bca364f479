/** The microphones that a visitor can choose from. */

/** @typedef {{ id: string, label: string }} Device */

/** Ids that name no device of their own. */
const STAND_INS = ["", "default", "communications"];

/**
 * The microphones there are, without the stand-ins for them under which some browsers list the system's choice again.
 * Until one has been opened, browsers tell neither ids nor names.
 * @returns {Promise<Device[]>}
 */
export async function microphones() {
  const all = (await navigator.mediaDevices?.enumerateDevices?.().catch(() => [])) ?? [];
  return all
    .filter(({ kind, deviceId }) => kind === "audioinput" && !STAND_INS.includes(deviceId))
    .map(({ deviceId, label }, index) => ({ id: deviceId, label: label || `Microphone ${index + 1}` }));
}

/**
 * Calls back whenever a device comes or goes.
 * @param {() => void} callback
 */
export function onDevicesChanged(callback) {
  navigator.mediaDevices?.addEventListener?.("devicechange", callback);
}
