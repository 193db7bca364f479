/**
 * <echo-rtc>: the talking face of a voice, in any page.
 *
 *     <script type="module" src="https://avatar.example/echo-rtc.js"></script>
 *     <echo-rtc controls></echo-rtc>
 *
 * The address that pages load; what it does is in element/, one module a subject.
 */

import { EchoRtc } from "./element/element.js";

export { EchoRtc };

if (customElements.get("echo-rtc") === undefined) {
  customElements.define("echo-rtc", EchoRtc);
}
