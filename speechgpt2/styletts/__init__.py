"""StyleTTS 2 as a network for synthesis, in the sizes of Kokoro-82M: phonemes and a style -> speech.

    layers    convolutions over rows, adaptive instance norm, residual blocks
    prosody   ALBERT, text encoder, durations, pitch, energy
    decoder   features at 40 Hz -> samples: iSTFT generator with a harmonic source
    model     both together
    weights   read from the ONNX file of Kokoro-82M

Li, Han, Raghavan, Mischler, Mesgarani: StyleTTS 2 (2023), https://arxiv.org/abs/2306.07691. Kokoro has no diffusion:
the style is an input. There is no batch dimension: a sequence is `[T, C]`, one row per step, because bfloat16
convolutions of channels-last rows are the fastest on a CPU with AMX.
"""
