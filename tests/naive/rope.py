import math

import numpy as np

from funcnet.ops.attention.rope import Config

PLAIN = Config()


def rope(x, config=PLAIN, positions=None, tables=None):
    *n, t, h, e = x.shape
    width = config.width or e if tables is None else 2 * tables[0].shape[-1]
    y = np.array(x, np.float64)
    for index in np.ndindex(*n, t, h):
        m = index[-2] if positions is None else positions[index[:-1][-positions.ndim :]]
        for i in range(width // 2):
            if tables is None:
                theta, c = angle_and_factor(config, i, width)
                turn = c * complex(math.cos(m * theta), math.sin(m * theta))
            else:
                turn = complex(*(table[(*index[:-1][1 - table.ndim :], i)] for table in tables))
            a, b = (i, i + width // 2) if config.layout == "split" else (2 * i, 2 * i + 1)
            turned = turn * complex(x[(*index, a)], x[(*index, b)])
            y[(*index, a)], y[(*index, b)] = turned.real, turned.imag
    return y


def angle_and_factor(config, i, width):
    """θ_i and c, as the papers and Meta's code write them."""
    base, s = config.base, config.scaling
    theta, kind = base ** (-2 * i / width), type(s).__name__
    if kind == "Linear":
        return theta / s.factor, 1
    if kind == "NTK":
        return (base * s.factor ** (width / (width - 2))) ** (-2 * i / width), 1
    if kind == "YaRN":
        first, last = (
            width * math.log(s.context / (2 * math.pi * r)) / (2 * math.log(base))
            for r in (s.beta_fast, s.beta_slow)
        )
        first, last = max(math.floor(first), 0), min(math.ceil(last), width - 1)
        ramp = min(max((i - first) / (last - first), 0), 1)
        c = 0.1 * math.log(s.factor) + 1 if s.attention_factor is None else s.attention_factor
        return theta * (1 - ramp) + theta / s.factor * ramp, c
    if kind == "Llama3":
        wavelength = 2 * math.pi / theta
        if wavelength > s.context / s.low:
            return theta / s.factor, 1
        if wavelength < s.context / s.high:
            return theta, 1
        smooth = (s.context / wavelength - s.low) / (s.high - s.low)
        return (1 - smooth) * theta / s.factor + smooth * theta, 1
    return theta, 1
