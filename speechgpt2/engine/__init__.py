"""Many live sessions on one model and one device.

config.py             the sizes and times of an engine
engine.py             what clients call: opens sessions, queues their commands, runs the core on a thread
core.py               executes commands; a step: schedule → run → deliver
scheduler.py          which slots are encoded, prefilled and sampled next (knows no torch)
model_runner.py       the batched work of the language model; step_inputs.py: what a step is given
row_states.py         its state, a row for each slot; prefill.py: chunks of several patches
prefix_cache.py       prefilled system prompts and greetings, for later sessions with the same
codec_worker.py       the batched work of the codec, in its own thread or process
batch_rows.py         slots as rows of batched states
session.py            a session as its client sees it: calls become commands (commands.py)
input_encoder.py      its settings and turns, checked and encoded before they become commands
event_queue.py        its events on their way back
slot.py               a session inside the engine: executes commands, offers work, takes results
history.py            the turns that a session's model remembers; context.py: their patches in one buffer
system_prompt.py      what the model reads before them
reply_styles.py       the styles that its user asked for
generation.py         the reply in progress, and how far it is ahead of its playback
input_audio.py        the user's speech before the codec encodes it
recording.py          what is new in a session's memory, to be saved; replay.py: its replies, generated again
session_identity.py   which saved sessions an engine can resume
truncation.py         the part of an interrupted reply that stays in memory
"""
