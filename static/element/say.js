/** What the avatar is to say, typed by the visitor, and the button that interrupts it. */

import { control, element, icon } from "./dom.js";

/** As many as the server takes at once. */
const MAX_CHARACTERS = 4096;

/** Events: "say" (CustomEvent with the text, which is never blank) and "interrupt". */
export class SayForm extends EventTarget {
  #text = element("textarea", {
    part: "say-text",
    class: "say-text",
    rows: "2",
    maxlength: String(MAX_CHARACTERS),
    enterkeyhint: "send",
    autocomplete: "off",
  });
  #button = element("button", { part: "action first-action", class: "action first", type: "submit" }, "Say");
  #form = element(
    "form",
    { part: "say", class: "say", hidden: "" },
    element("label", { class: "say-field" }, element("span", {}, "Say this"), this.#text),
    this.#button,
  );
  #interrupt = control("Interrupt the avatar", "I", icon("stop"), element("span", {}, "Interrupt"));

  constructor() {
    super();
    this.#interrupt.hidden = true;
    this.showSaying(false);
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#say();
    });
    this.#form.addEventListener("keydown", (event) => this.#onKey(event));
    this.#interrupt.addEventListener("click", () => {
      if (this.#interrupt.ariaDisabled !== "true") {
        this.dispatchEvent(new Event("interrupt"));
      }
    });
  }

  /** The field with its button. */
  get form() {
    return this.#form;
  }

  /** The button of the call's bar. */
  get interrupt() {
    return this.#interrupt;
  }

  /**
   * @param {boolean} shown Whether there is a field: the server says text, and a call is up.
   * @param {boolean} controllable Whether what is said can be interrupted from here.
   */
  arrange(shown, controllable) {
    this.#form.hidden = !shown;
    this.#interrupt.hidden = !controllable;
  }

  /** @param {boolean} isSaying Whether anything is being said or waits for it. The button keeps its place and focus. */
  showSaying(isSaying) {
    this.#interrupt.ariaDisabled = String(!isSaying);
  }

  /**
   * Gives a text back that could not be said.
   * @param {string} text
   */
  giveBack(text) {
    this.#text.value ||= text;
  }

  #say() {
    const text = this.#text.value.trim();
    if (text !== "") {
      this.#text.value = "";
      this.dispatchEvent(new CustomEvent("say", { detail: text }));
    }
    this.#text.focus();
  }

  /**
   * Enter says it, with Shift it begins a line. Keys that are typed are not the call's; Escape ends that as everywhere.
   * @param {KeyboardEvent} event
   */
  #onKey(event) {
    if (event.key !== "Escape") {
      event.stopPropagation();
    }
    if (event.key === "Enter" && event.target === this.#text && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#say();
    }
  }
}
