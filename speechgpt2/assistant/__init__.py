"""Tools for the assistant: Python functions that a model may call, the loop that calls them, and a knowledge base."""
