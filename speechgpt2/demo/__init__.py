"""The Gradio demo: a page for visitors, a client of the server's wire like any other.

`app.py` is the page, `talk.py` one visitor's talk over the wire, `greetings.py` what the model may begin with.
"""
