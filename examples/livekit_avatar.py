"""A LiveKit agent with a face: an avatar of an echo_rtc server joins the room and says what the agent says.

The server, which may be on another machine, renders; it must be allowed to join rooms of the LiveKit server:

    echo-rtc serve --livekit-host my-project.livekit.cloud

The agent is a program of livekit-agents like any other (``pip install "echo-rtc[livekit]"``). It takes speech
recognition, language model and voice from LiveKit's inference; plugins of livekit-agents do as well:

    export LIVEKIT_URL=wss://my-project.livekit.cloud LIVEKIT_API_KEY=... LIVEKIT_API_SECRET=...
    export ECHO_RTC_URL=https://avatar.example ECHO_RTC_TOKEN=...
    python examples/livekit_avatar.py dev
"""

from __future__ import annotations

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, TurnHandlingOptions, cli, inference

from echo_rtc.livekit import AvatarSession

server = AgentServer()


def make_session() -> AgentSession[None]:
    """An agent's session. An avatar cannot pause, so an interruption that turns out to be none is not resumed."""
    return AgentSession(
        stt=inference.STT("deepgram/nova-3"),
        llm=inference.LLM("openai/gpt-4.1-mini"),
        tts=inference.TTS("cartesia/sonic-3"),
        turn_handling=TurnHandlingOptions(interruption={"resume_false_interruption": False}),
    )


@server.rtc_session()
async def entrypoint(context: JobContext) -> None:
    session = make_session()
    avatar = AvatarSession()
    await avatar.start(session, room=context.room)
    await session.start(agent=Agent(instructions="You are friendly and brief."), room=context.room)
    session.generate_reply(instructions="Greet the caller.")


if __name__ == "__main__":
    cli.run_app(server)
