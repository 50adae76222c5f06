"""Sound: spectra of frames and back, mel bands and their cepstrum, filters."""
