import math

import numpy as np

from tests.naive.mel import mel
from tests.naive.stft import stft


def log_mel(x, window=None, *, power=2, floor=1e-10, span=None, gain=1.0, offset=0.0, **options):
    spectrum = {k: options.pop(k) for k in ("hop", "width", "padding", "padding_mode") if k in options}
    pairs = stft(x, window, n_fft=options["n_fft"], **spectrum)
    e = mel(np.hypot(pairs[..., 0], pairs[..., 1]) ** power, **options)
    y = np.zeros(e.shape)
    for n in np.ndindex(*e.shape[:-2]):
        top = max((max(v, floor) for v in e[n].flat), default=floor)
        for at in np.ndindex(*e.shape[-2:]):
            least = -math.inf if span is None else math.log10(top) - span
            y[n + at] = gain * max(math.log10(max(e[n + at], floor)), least) + offset
    return y
