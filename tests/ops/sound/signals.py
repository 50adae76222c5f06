"""The signal that other libraries were given: a chirp and a hiss.

What they made of it stands in the tests, each beside its command: librosa 0.11.0 and torchaudio 2.11.1 (its
Python part), each after

    import numpy as np, librosa, torch, torchaudio
    t = np.arange(3000)
    x = (np.sin(2e-4 * t**2) * np.exp(-t / 2000) + 0.01 * np.sin(7.0 * t**2)).astype(np.float32)
"""

import numpy as np

T = np.arange(3000)
X = (np.sin(2e-4 * T**2) * np.exp(-T / 2000) + 0.01 * np.sin(7.0 * T**2)).astype(np.float32)
