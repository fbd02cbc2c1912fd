"""Signal processing on arrays: spectra, pitch, levels, voice activity."""
