import itertools
import math

import numpy as np


def ctc(logits, labels, lengths=None, label_lengths=None, blank=0):
    """By the definition: every path of the frames, and of those that become the labels the probability."""
    v, y = logits.shape[-1], np.zeros(logits.shape[:-2])
    for n in np.ndindex(*y.shape):
        t = logits.shape[-2] if lengths is None else int(lengths[n])
        l = labels.shape[-1] if label_lengths is None else int(label_lengths[n])
        p = [[math.exp(h) / sum(map(math.exp, frame)) for h in frame] for frame in logits[n][:t]]
        wanted, total = [int(k) for k in labels[n][:l]], 0.0
        for path in itertools.product(range(v), repeat=t):
            if [k for k, _ in itertools.groupby(path) if k != blank] == wanted:
                total += math.prod(p[i][k] for i, k in enumerate(path))
        y[n] = -math.log(total)
    return y
