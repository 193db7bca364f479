"""A call from another machine, as far as one machine can show it: over HTTPS with a certificate made by the server, at
an address that is not localhost, with a token, and through a TURN server only."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from echo_rtc.web.tls import own_names
from tests.browser.conftest import TEST_CARD, PageFactory, ServerFactory
from tests.support.turn import coturn

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN = "a-token-for-everything"
RELAY_ONLY = """
const Plain = RTCPeerConnection;
globalThis.peers = [];
globalThis.RTCPeerConnection = class extends Plain {
  constructor(configuration) {
    super({ ...configuration, iceTransportPolicy: "relay" });
    peers.push(this);
  }
};
"""
ROUTE = """
async () => {
  const report = [...(await peers.at(-1).getStats()).values()];
  const { selectedCandidatePairId } = report.find(({ type }) => type === "transport");
  const { localCandidateId } = report.find(({ id }) => id === selectedCandidatePairId);
  return report.find(({ id }) => id === localCandidateId).candidateType;
}
"""


async def test_a_call_over_https_through_a_relay_only(
    server: ServerFactory, page: PageFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    address = next(name for name in own_names() if isinstance(name, IPv4Address) and not name.is_loopback)
    # A relay on loopback would be no candidate for a caller from elsewhere.
    async with coturn(tmp_path, address=str(address)) as turn:
        access = ("--host", "0.0.0.0", "--tls-self-signed", "--auth-token", TOKEN)
        running = await server(TEST_CARD, *access, "--ice-server", turn.url, "--turn-secret", turn.secret)
        url = f"https://{address}:{running.port}"
        visit = await page(f"{url}/#token={TOKEN}", script=RELAY_ONLY, ignore_https_errors=True)
        await visit.start()
        await visit.state("Speaking")
        first = await visit.rendered_card()
        assert (await visit.rendered_card()).frame > first.frame
        assert await visit.page.evaluate(ROUTE) == "relay"
        # Whoever looks over a shoulder reads no token.
        assert visit.page.url == f"{url}/"
        await visit.end()
    assert TOKEN not in "".join(running.lines)
    assert turn.secret not in "".join(running.lines)
