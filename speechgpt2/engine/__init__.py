"""Many live sessions on one model and one device.

engine.py             what clients call: opens sessions, queues their commands, runs the core on a thread
core.py               executes commands; a step: schedule → run → deliver
scheduler.py          which slots are encoded, prefilled and sampled next (knows no torch)
model_runner.py       the batched work of the language model; step_inputs.py: what a step is given
codec_worker.py       the batched work of the codec, on a thread or in a process of its own
batch_rows.py         slots as rows of batched states; recorded_function.py: steps recorded as CUDA graphs
session.py            a session as its client sees it: calls become commands (commands.py)
event_queue.py        its events on their way back
slot.py               a session inside the engine: executes commands, offers work, takes results
history.py            what a session's model remembers, on top of context.py, a token buffer with turns
generation.py         the reply under way, and how far it is ahead of its playback
input_audio.py        the user's speech on its way to the codec
truncation.py         what stays of a reply that was cut short
"""
