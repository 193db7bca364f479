/**
 * The element's style sheet.
 *
 * Colours are named by what they are for, each once for light and dark, and follow the page's `color-scheme`. All that
 * a page may set is read from a custom property of its own name here, and nowhere else.
 */
export const STYLE = `
:host {
  --accent: var(--echo-rtc-accent, light-dark(#0b6b52, #4cd4a6));
  --on-accent: var(--echo-rtc-on-accent, light-dark(#ffffff, #042219));
  --surface: var(--echo-rtc-surface, light-dark(#ffffff, #131b18));
  --ink: var(--echo-rtc-ink, light-dark(#11201b, #e8f0ed));
  --ink-soft: var(--echo-rtc-ink-soft, light-dark(#485b54, #a5b6b0));
  --line: var(--echo-rtc-line, light-dark(#d3ddd9, #27332f));
  --edge: var(--echo-rtc-edge, light-dark(#7b8c86, #71837c));
  --warning: var(--echo-rtc-warning, light-dark(#8a4b00, #f5bd5c));
  --hang-up: var(--echo-rtc-hang-up, #c0291d);
  --radius: var(--echo-rtc-radius, 1.25rem);
  --stage-width: var(--echo-rtc-stage-width, 100%);
  --tint: color-mix(in oklab, var(--accent) 14%, var(--surface));
  --warning-tint: color-mix(in oklab, var(--warning) 14%, var(--surface));
  --on-picture: #f2f7f5;
  --shade: rgb(9 15 13 / 84%);
  --shadow: 0 0.75rem 2rem -0.75rem light-dark(rgb(17 32 27 / 18%), rgb(0 0 0 / 60%));
  --quick: 160ms;
  display: block;
  color: var(--ink);
  line-height: 1.5;
  text-align: start;
}

:host([hidden]),
[hidden] {
  display: none !important;
}

*,
*::before,
*::after {
  box-sizing: border-box;
}

h2,
p {
  margin: 0;
}

button,
input {
  font: inherit;
  color: inherit;
}

button,
label {
  -webkit-tap-highlight-color: transparent;
}

:focus-visible {
  outline: 3px solid var(--accent);
  outline-offset: 2px;
}

.icon {
  display: block;
  width: 1.5rem;
  height: 1.5rem;
  flex: none;
  fill: none;
  stroke: currentColor;
  stroke-width: 1.8;
  stroke-linecap: round;
  stroke-linejoin: round;
}

.unseen {
  position: absolute;
  width: 1px;
  height: 1px;
  margin: -1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

/* Its own grid within the host: a page may give that any display, and the distances stay. */

.frame {
  display: grid;
  grid-template-columns: minmax(0, 1fr);
  align-content: start;
  justify-items: center;
  gap: 0.9rem;
}

/* The picture. The stage is no larger than its picture bears, and leaves room for the bar below it in low windows. */

.stage {
  position: relative;
  display: grid;
  width: min(
    100%,
    var(--stage-width),
    var(--most-width, 32rem),
    max(13rem, (100dvh - 7rem) * var(--ratio, 1))
  );
  aspect-ratio: var(--ratio, 1); /* the least: words that need more room make it taller */
  border-radius: var(--radius);
  background: var(--surface);
  box-shadow: var(--shadow);
  outline: 1px solid var(--line);
  isolation: isolate;
  container-type: inline-size;
  contain-intrinsic-inline-size: 20rem;
}

.stage[data-phase="live"] {
  outline: 0;
}

/* The visitor's own voice: a ring that grows with its level, before the avatar can answer. */

.stage[data-phase="live"]:is([data-state="hearing"], [data-state="speaking"], [data-state="idle"]) {
  box-shadow: 0 0 0 calc(var(--level, 0) * 0.6rem) color-mix(in srgb, var(--accent) 45%, transparent), var(--shadow);
  transition: box-shadow 80ms linear;
}

.stage::after {
  content: "";
  position: absolute;
  inset: 0;
  border: 3px solid transparent;
  border-radius: inherit;
  pointer-events: none;
  transition: border-color 400ms;
}

.stage[data-phase="live"]:is([data-state="hearing"], [data-state="speaking"])::after {
  border-color: var(--accent);
}

.stage[data-phase="live"][data-state="behind"]::after {
  border-color: var(--warning);
}

video,
.poster,
.overlay {
  border-radius: inherit;
}

video,
.poster {
  display: block;
  width: 100%;
  height: 100%;
  max-width: var(--most-width);
  max-height: var(--most-height);
  position: absolute;
  inset: 0;
  margin: auto;
  object-fit: contain;
}

.poster {
  height: auto;
  aspect-ratio: var(--ratio, 1);
  margin: 0 auto;
  object-fit: cover;
  object-position: top;
}

.overlay {
  position: relative;
  isolation: isolate;
  display: grid;
  place-items: center;
  overflow: clip;
  padding: 3.5rem 1.25rem 1.5rem;
  background: var(--surface);
  text-align: center;
}

.notice {
  width: 100%;
  max-width: 27rem;
  display: grid;
  justify-items: center;
  gap: 0.7rem;
}

.notice p {
  text-wrap: pretty;
  overflow-wrap: anywhere;
}

.title {
  font-size: clamp(1.3rem, 1rem + 2.4cqi, 1.9rem);
  font-weight: 650;
  line-height: 1.2;
  letter-spacing: -0.02em;
  text-wrap: balance;
}

.text {
  color: var(--ink-soft);
}

.emblem {
  --ring: color-mix(in srgb, var(--accent) 14%, transparent);
  --tint: color-mix(in oklab, var(--accent) 14%, var(--surface));
  --warning-tint: color-mix(in oklab, var(--warning) 14%, var(--surface));
  position: relative;
  display: grid;
  width: 4rem;
  height: 4rem;
  place-items: center;
  border-radius: 50%;
  background: var(--tint);
  color: var(--accent);
}

/* Rings that go out from it, as a sound does. */
.emblem::before {
  content: "";
  position: absolute;
  z-index: -1;
  width: 60rem;
  height: 60rem;
  border-radius: 50%;
  background: repeating-radial-gradient(circle, transparent 0 3.9rem, var(--ring) 3.96rem 4rem, transparent 4.06rem);
  mask: radial-gradient(circle, #000 5rem, transparent 24rem);
  pointer-events: none;
}

.emblem .icon {
  width: 2.2rem;
  height: 2.2rem;
}

.notice[data-tone="warning"] .emblem {
  background: var(--warning-tint);
  color: var(--warning);
}

.notice[data-tone="busy"] .emblem::after {
  content: "";
  position: absolute;
  inset: -0.3rem;
  border: 0.16rem solid var(--tint);
  border-top-color: var(--accent);
  border-radius: 50%;
  animation: turn 1.1s linear infinite;
}

/* Over a poster the words lie on a dark sheet at its foot, so that the face is seen. */

.overlay[data-over="poster"] {
  place-items: end center;
  padding: min(58cqi, 12rem) 0.75rem 0.75rem;
  background: none;
}

.overlay[data-over="poster"] .notice {
  --ink: var(--on-picture);
  --ink-soft: #d3deda;
  --surface: #18211e;
  --accent: var(--echo-rtc-accent, #4cd4a6);
  --on-accent: var(--echo-rtc-on-accent, #042219);
  --edge: #8fa19a;
  --warning: #f5bd5c;
  width: fit-content;
  min-width: min(100%, 18rem);
  max-width: 30rem;
  padding: 0.9rem 1.1rem 1rem;
  border-radius: 1rem;
  background: var(--shade);
  color: var(--on-picture);
  backdrop-filter: blur(0.4rem);
}

.overlay[data-over="poster"] .emblem {
  width: 2.4rem;
  height: 2.4rem;
}

.overlay[data-over="poster"] .emblem::before,
.overlay[data-over="poster"] .notice[data-tone="calm"] .emblem {
  display: none;
}

.overlay[data-over="poster"] .emblem .icon {
  width: 1.4rem;
  height: 1.4rem;
}

/* The second way is a quiet one there. */

.overlay[data-over="poster"] .action:not(.first) {
  min-height: 2.25rem;
  padding: 0.25rem 0.75rem;
  border-color: transparent;
  background: none;
  text-decoration: underline 1px;
  text-underline-offset: 0.25em;
}

.overlay[data-over="poster"] .action:not(.first):hover {
  text-decoration-thickness: 2px;
}

/* A trouble looks like one. */

.notice[data-tone="warning"] .title {
  color: var(--warning);
}

.overlay[data-over="poster"] .notice[data-tone="warning"] {
  box-shadow: inset 0 0.2rem var(--warning);
}

.field {
  display: grid;
  width: min(100%, 18rem);
  gap: 0.25rem;
  font-size: 0.85rem;
  font-weight: 600;
  text-align: start;
}

.token {
  width: 100%;
  min-height: 2.75rem;
  padding: 0.4rem 0.75rem;
  border: 1px solid var(--edge);
  border-radius: 0.75rem;
  background: var(--surface);
  font-size: 1rem;
}

.countdown {
  font-variant-numeric: tabular-nums;
  font-weight: 600;
}

.hint {
  color: var(--ink-soft);
  font-size: 0.85rem;
  line-height: 1.45;
}

.actions {
  display: flex;
  flex-wrap: wrap;
  justify-content: center;
  gap: 0.6rem;
  margin-top: 0.35rem;
}

.action {
  min-height: 2.9rem;
  padding: 0.5rem 1.3rem;
  border: 1px solid var(--edge);
  border-radius: 999px;
  background: var(--surface);
  font-weight: 600;
  cursor: pointer;
  transition: background-color var(--quick), border-color var(--quick);
}

.action:hover {
  border-color: var(--accent);
  background: color-mix(in oklab, var(--accent) 14%, var(--surface));
}

.action.first {
  border-color: transparent;
  background: var(--accent);
  color: var(--on-accent);
}

.action.first:hover {
  background: color-mix(in oklab, var(--accent) 84%, var(--ink));
}

/* Chips over the picture: always light on dark, whatever plays beneath */

.chip {
  position: absolute;
  top: 0.85rem;
  left: 0.85rem;
  display: flex;
  align-items: center;
  gap: 0.5rem;
  padding: 0.28rem 0.8rem 0.28rem 0.65rem;
  border-radius: 999px;
  background: var(--shade);
  color: var(--on-picture);
  font-size: 0.85rem;
  font-weight: 600;
  line-height: 1.4;
}

.clock {
  right: 0.85rem;
  left: auto;
  padding-inline: 0.75rem;
  font-variant-numeric: tabular-nums;
}

.recording {
  top: 3.1rem;
}

.chip[hidden] + .recording {
  top: 0.85rem;
}

.recording .dot {
  background: #ff6b5e;
}

.dot {
  flex: none;
  width: 0.6rem;
  height: 0.6rem;
  border-radius: 50%;
  background: #9fb0aa;
}

.chip:is([data-state="connecting"], [data-state="waiting"]) .dot {
  background: #7db4ff;
  animation: breathe 1.4s ease-in-out infinite;
}

.chip[data-state="idle"] .dot {
  background: #d6e2dd;
}

.chip:is([data-state="hearing"], [data-state="speaking"], [data-state="watching"]) .dot {
  background: #4cd4a6;
  box-shadow: 0 0 0 0.22rem rgb(76 212 166 / 30%);
}

.chip[data-state="behind"] .dot {
  background: #f5bd5c;
}

.chip[data-tone="warning"] .dot {
  background: #f5bd5c;
  animation: none;
}

.banner,
.unmute {
  position: absolute;
  right: 0.85rem;
  bottom: 0.85rem;
  left: 0.85rem;
  width: fit-content;
  max-width: calc(100% - 1.7rem);
  margin-inline: auto;
  padding: 0.45rem 1rem;
  border: 0;
  border-radius: 1rem;
  background: var(--shade);
  color: var(--on-picture);
  font-size: 0.9rem;
  text-align: center;
}

.banner {
  display: flex;
  align-items: center;
  gap: 0.5rem;
}

.banner .icon {
  display: none;
  width: 1.2rem;
  height: 1.2rem;
}

.banner.muted {
  background: #f5bd5c;
  color: #2b1a00;
  font-weight: 650;
}

.banner.muted .icon {
  display: block;
}

.unmute {
  display: flex;
  min-height: 2.75rem;
  align-items: center;
  gap: 0.5rem;
  font-weight: 600;
  cursor: pointer;
}

.unmute:not([hidden]) + .banner {
  bottom: 4.2rem;
}

/* Words that are said: text like any other, to be read, selected and copied */

.caption-text {
  position: absolute;
  right: 0.85rem;
  bottom: 0.85rem;
  left: 0.85rem;
  width: fit-content;
  max-width: calc(100% - 1.7rem);
  max-height: 40%;
  margin-inline: auto;
  padding: 0.4rem 0.9rem;
  border-radius: 0.6rem;
  background: var(--shade);
  color: var(--on-picture);
  font-size: 1.05rem;
  line-height: 1.4;
  overflow-wrap: anywhere;
  overflow-y: auto;
  text-align: center;
  text-wrap: balance;
  white-space: pre-line;
  user-select: text;
  cursor: text;
}

.stage:has(> :is(.unmute, .banner):not([hidden])) .caption-text {
  bottom: 4.2rem;
}

.unmute:not([hidden]) + .banner:not([hidden]) + .caption-text {
  bottom: 7.5rem;
}

.stage:not([data-phase="live"]) .caption-text {
  display: none;
}

.caption {
  color: var(--ink-soft);
  font-size: 0.9rem;
  text-align: center;
}

/* Controls */

.controls {
  display: flex;
  max-width: 100%;
  flex-wrap: wrap;
  align-items: center;
  justify-content: center;
  gap: 0.35rem;
  padding: 0.4rem;
  border: 1px solid var(--line);
  border-radius: 1.4rem;
  background: var(--surface);
  box-shadow: var(--shadow);
}

.control {
  display: grid;
  min-width: 4.2rem;
  min-height: 3.5rem;
  justify-items: center;
  align-content: center;
  gap: 0.1rem;
  padding: 0.3rem 0.6rem;
  border: 0;
  border-radius: 1.05rem;
  background: transparent;
  font-size: 0.78rem;
  font-weight: 600;
  line-height: 1.2;
  cursor: pointer;
  transition: background-color var(--quick), color var(--quick);
}

.control:hover {
  background: var(--tint);
}

.control[aria-disabled="true"] {
  background: transparent;
  opacity: 0.5;
  cursor: default;
}

.control[aria-pressed="true"] {
  background: var(--warning-tint);
  color: var(--warning);
}

/* Text that the avatar is to say */

.say {
  display: grid;
  width: min(100%, max(20rem, var(--stage-width)));
  max-width: 36rem;
  grid-template-columns: minmax(0, 1fr) auto;
  align-items: end;
  gap: 0.6rem;
}

.say-field {
  display: grid;
  gap: 0.25rem;
  font-size: 0.85rem;
  font-weight: 600;
}

.say-text {
  width: 100%;
  min-height: 2.9rem;
  padding: 0.5rem 0.75rem;
  border: 1px solid var(--edge);
  border-radius: 0.75rem;
  background: var(--surface);
  font: inherit;
  font-size: 1rem;
  font-weight: 400;
  resize: vertical;
}

.hang-up,
.hang-up:hover {
  background: var(--hang-up);
  color: #ffffff;
}

.hang-up:hover {
  background: color-mix(in oklab, var(--hang-up) 85%, #000000);
}

.hang-up .icon {
  fill: currentColor;
  stroke: none;
}

.volume {
  display: grid;
  min-width: 0;
  max-width: 10.4rem;
  flex: 1 1 6rem;
  gap: 0.1rem;
  padding: 0 0.9rem 0 0.5rem;
  font-size: 0.78rem;
  font-weight: 600;
  line-height: 1.2;
}

.volume input {
  width: 100%;
  height: 1.6rem;
  margin: 0;
  appearance: none;
  background: transparent;
  cursor: pointer;
}

.volume input::-webkit-slider-runnable-track {
  height: 0.32rem;
  border-radius: 1rem;
  background: linear-gradient(to right, var(--accent) var(--filled, 100%), var(--edge) var(--filled, 100%));
}

.volume input::-moz-range-track {
  height: 0.32rem;
  border-radius: 1rem;
  background: var(--edge);
}

.volume input::-moz-range-progress {
  height: 0.32rem;
  border-radius: 1rem;
  background: var(--accent);
}

.volume input::-webkit-slider-thumb {
  width: 1.1rem;
  height: 1.1rem;
  margin-top: -0.39rem;
  appearance: none;
  border: 0.16rem solid var(--surface);
  border-radius: 50%;
  background: var(--accent);
  box-shadow: 0 0 0 1px var(--accent);
}

.volume input::-moz-range-thumb {
  width: 0.8rem;
  height: 0.8rem;
  border: 0.16rem solid var(--surface);
  border-radius: 50%;
  background: var(--accent);
  box-shadow: 0 0 0 1px var(--accent);
}

/* Phones set the volume by their own keys, and small windows have no room for it. */

@media (max-width: 39.99rem), (max-height: 34rem), (pointer: coarse) {
  .volume {
    display: none;
  }
}

/*
 * The mark that this is AI-generated. What is important in here wins over whatever a page says, and "all" ends what it
 * would inherit from the page. It has a place at the top, which the controls never cover, beside the head.
 */

.mark {
  all: initial !important;
  position: absolute !important;
  z-index: 2147483647 !important;
  top: 0.85rem !important;
  right: 0.85rem !important;
  box-sizing: border-box !important;
  width: 8.6em !important;
  padding: 0.46em 0 !important;
  border-radius: 99em !important;
  background: rgb(9 15 13 / 84%) !important;
  color: #f2f7f5 !important;
  font: 600 max(12px, 0.75rem) / 1.4 system-ui, "Liberation Sans", Arial, sans-serif !important;
  text-align: center !important;
  white-space: nowrap !important;
  pointer-events: none !important;
}

.mark[hidden] {
  display: none !important;
}

/* Nor may a page cut or fade the stage, or move the picture out of it, so that the mark is lost and the picture is not. */

.stage {
  display: grid !important;
  position: relative !important;
  max-width: 100% !important;
  overflow: visible !important;
  clip-path: none !important;
  filter: none !important;
  mask: none !important;
  mix-blend-mode: normal !important;
  opacity: 1 !important;
}

video {
  position: absolute !important;
  inset: 0 !important;
  width: 100% !important;
  height: 100% !important;
  margin: auto !important;
  offset: none !important;
  rotate: none !important;
  scale: none !important;
  transform: none !important;
  translate: none !important;
}

.stage,
video,
.poster,
.mark {
  visibility: inherit !important;
}

.stage::before,
.stage::after {
  z-index: auto !important;
}

.stage:has(> .mark:not([hidden])) .clock {
  right: calc(1.25rem + 8.6 * max(12px, 0.75rem));
}

.stage:has(> .mark:not([hidden])) .chip:not(.clock) {
  max-width: calc(100% - 2.1rem - 8.6 * max(12px, 0.75rem));
  border-radius: 1rem;
}

/* A small stage, wherever it stands */

@container (max-width: 24rem) {
  .stage:has(> .mark:not([hidden])) .clock {
    top: calc(1.2rem + 2.3 * max(12px, 0.75rem));
    right: 0.85rem;
  }
}

@container (max-width: 36rem) {
  .overlay {
    padding: 3.25rem 1rem 1.1rem;
  }

  .emblem {
    width: 3.2rem;
    height: 3.2rem;
  }

  .emblem .icon {
    width: 1.6rem;
    height: 1.6rem;
  }

  .notice {
    gap: 0.5rem;
  }

  .text {
    font-size: 0.95rem;
  }

  .title {
    font-size: 1.2rem;
  }

  .overlay[data-over="poster"] .notice {
    padding: 0.75rem;
  }

  .overlay[data-over="poster"] .actions {
    margin-top: 0;
  }

  .action {
    min-height: 2.75rem;
    padding-inline: 1.1rem;
  }
}

/* A low window (a phone on its side, a page at 200 %): the bar lies over the foot of the picture, always in reach. */

@media (max-height: 34rem) {
  .frame {
    position: relative;
  }

  .stage {
    width: min(100%, var(--stage-width), var(--most-width, 32rem), max(13rem, (100dvh - 1rem) * var(--ratio, 1)));
  }

  .controls {
    position: absolute;
    bottom: 0.5rem;
    left: 50%;
    translate: -50%;
    width: max-content;
  }

  .frame:has(> .say:not([hidden])) .controls {
    position: static;
    translate: none;
  }

  .caption {
    display: none;
  }

  .stage:has(+ .controls:not([hidden])) :is(.banner, .unmute, .caption-text) {
    bottom: 5.2rem;
  }

  .control {
    min-height: 2.9rem;
  }

  .overlay[data-over="poster"] {
    padding: 3rem 0.5rem 0.5rem;
  }

  .overlay[data-over="poster"] .notice {
    gap: 0.3rem;
    padding: 0.6rem;
  }

  .overlay[data-over="poster"] .actions {
    gap: 0.2rem;
  }

  .overlay[data-over="poster"] .notice[data-tone="calm"] .title,
  .overlay[data-over="poster"] .emblem,
  .hint {
    display: none;
  }
}

@keyframes turn {
  to {
    transform: rotate(1turn);
  }
}

@keyframes breathe {
  50% {
    opacity: 0.35;
  }
}

@media (prefers-reduced-motion: reduce) {
  *,
  *::before,
  *::after {
    transition: none !important;
    animation: none !important;
  }
}

@media (forced-colors: active) {
  .dot {
    forced-color-adjust: none;
  }
}
`;
