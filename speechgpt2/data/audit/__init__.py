"""Audits: how well filters, labels and styles do on speech whose truth is known."""
