/** Helpers that make the nodes of the element's shadow tree. */

import { ICONS } from "./icons.js";

/**
 * The payload of a CustomEvent.
 * @param {Event} event
 */
export function detailOf(event) {
  return /** @type {CustomEvent} */ (event).detail;
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("viewBox", "0 0 24 24");
  made.setAttribute("aria-hidden", "true");
  made.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  draw(made, name);
  return made;
}

/**
 * @param {SVGSVGElement} place
 * @param {keyof typeof ICONS} name
 */
export function draw(place, name) {
  place.firstElementChild?.setAttribute("d", ICONS[name]);
}

/**
 * A button of the call's bar.
 * @param {string} label What it does, in full; it contains the visible words, whichever these are.
 * @param {string} key Its keyboard shortcut, as aria-keyshortcuts has it.
 * @param {(Node | string)[]} children
 */
export function control(label, key, ...children) {
  const attributes = { part: "control", class: "control", type: "button", "aria-label": label };
  return element("button", { ...attributes, title: `${label} (${key})`, "aria-keyshortcuts": key }, ...children);
}
