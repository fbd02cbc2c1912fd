"""Many live sessions on one model and one device.

engine.py      step: schedule → run → deliver, on a thread of its own
scheduler.py   who is encoded, read and drawn next (knows no torch)
runner.py      the batched work: the model's states, a row for each slot (rows.py)
sounds.py      the codec's: on a thread or in a process of its own
slot.py        a session inside the engine: its ear, its reply
context.py     what its model has been told, bounded
memory.py      what stays of a reply that was cut short
session.py     a session as its caller sees it; mailbox.py: its events
"""
