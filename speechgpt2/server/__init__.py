"""The wire: OpenAI Realtime and REST on one side, an engine's sessions on the other; and the page that talks to it.

app.py       the FastAPI application: routes, health, the page
realtime.py  one websocket's loop: messages in, events out
response.py  one answer as the wire tells it
wire.py      the client's messages and the session's settings, checked
conversation.py  the items that both sides name by id
rest.py      chat completions, speech and transcription as plain requests
auth.py limits.py metrics.py formats.py config.py launch.py
"""
