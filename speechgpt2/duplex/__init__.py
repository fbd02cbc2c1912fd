"""Turn taking: voice activity, endpointing, interruption and echo.

It talks to an engine through protocol.py, and imports neither the codec nor the language model.

protocol.py         the interfaces between server, dialogue and engine
dialogue.py         what servers call: audio of a microphone in, turns and replies out
voice_activity.py   the probability of speech in each block of the microphone
echo.py             which blocks are the model's own voice
endpointing.py      when a turn starts, pauses and ends; settings.py: its settings from those of a client
user_turn.py        the audio of a turn on its way to the session, and the speculative reply to it
playback.py         how much of a reply has been played
event_queue.py      the events on their way to the client
"""
