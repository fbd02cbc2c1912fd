"""Text to speech: synthesis engines, their voices, forced alignment, and augmentation."""
