/**
 * The element by itself, for iframes: /embed?mode=view&name=studio&muted&autoplay#token=...
 *
 * Each parameter is the attribute of that name, empty or with its value; the controls are there unless controls=off.
 * The token alone stands behind the #, where no server's log and no Referer header ever has it.
 */

import "../echo-rtc.js";

const ATTRIBUTES = ["avatar", "mode", "name", "muted", "autoplay", "captions", "poster"];

const given = new URLSearchParams(location.search);
const element = document.createElement("echo-rtc");
for (const name of ATTRIBUTES.filter((name) => given.has(name))) {
  element.setAttribute(name, given.get(name) ?? "");
}
element.toggleAttribute("controls", given.get("controls") !== "off");
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token !== null) {
  element.setAttribute("token", token);
}
document.body.append(element);
