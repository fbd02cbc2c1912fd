"""Audits: the accuracy of filters, labels and styles, on speech with known faults and labels."""
