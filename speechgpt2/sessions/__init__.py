"""Saved sessions: what a model remembers of a conversation, on a disk, so that another process can resume it.

entries.py       what the lines of a session's file say, and the session that they add up to
session_file.py  one session's file: lines with checksums, written as the conversation goes on
store.py         a folder of such files: create, resume, list, delete, forget after some days
export.py        a saved session as a dialogue with audio

A line holds patches as they stand in the model's context. Audio is decoded from their codes, only when it is exported.
"""
