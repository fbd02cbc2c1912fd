"""Text to speech: synthesis engines, the voices they offer, forced alignment and augmentation."""
