"""The streaming speech codec: 24 kHz speech to 750 bit/s and back."""
