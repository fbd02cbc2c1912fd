"""The Gradio demo: a web page that talks to a server over the Realtime protocol.

app.py         the page
session.py     one visitor's conversation
connection.py  its connection to the server
greetings.py   greetings with which a conversation may start
saved_talks.py conversations that the server saves
"""
