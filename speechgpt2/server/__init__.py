"""The server: wire protocols on one side, an engine's sessions on the other, and a web page that talks to it.

Every wire protocol:

    app.py            the FastAPI application: health, metrics, the page, and the routes of all protocols
    protocols.py      the list of wire protocols; a new one is registered here
    gateway.py        authentication, admission, opening and closing of sessions
    channel.py        the loops of one session: read messages, follow the dialogue's events, write, watch limits
    websocket.py      the routes of a protocol over WebSocket

OpenAI Realtime, by WebSocket and WebRTC:

    realtime.py       one session: client messages in, server events out
    user_turns.py     its input audio buffer and the user's spoken turns
    responses.py      its responses, one after the other
    realtime_websocket.py, messages.py, session_config.py, items.py, response.py, settings.py
    webrtc_calls.py, call_session.py, webrtc_peer.py, playout.py

REST: rest.py, chat_completions.py. Telephones: phone_session.py, twilio.py, audiosocket.py with tcp.py.
Home Assistant: wyoming.py, wyoming_connection.py.

The process: launch.py, config.py, metrics.py, logs.py; tracing.py, open_telemetry.py and turn_spans.py for traces.
"""
