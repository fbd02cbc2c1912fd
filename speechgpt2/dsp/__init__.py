"""Signal processing on arrays: spectra, pitch, voice activity."""
