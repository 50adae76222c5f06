import math

import jax
import numpy as np


def attention(
    q,
    k,
    v,
    bias=None,
    sinks=None,
    causal=False,
    window=None,
    segment_ids=None,
    mask=None,
    scale=None,
    softcap=None,
    q_offset=0,
    dropout_rate=0.0,
    key=None,
    block=None,
):
    *n, t, h, e = q.shape
    s, h_kv = k.shape[-3:-1]
    scale = 1 / math.sqrt(e) if scale is None else scale
    mask = np.broadcast_to(True if mask is None else mask, (*n, h, t, s))
    bias = np.broadcast_to(0.0 if bias is None else bias, (*n, h, t, s))
    offset = np.broadcast_to(q_offset, n)
    of_q, of_k = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    seed = None if key is None or not dropout_rate else np.asarray(jax.random.bits(key, (2,), "uint32"))

    def sees(b, head, i, j):
        ahead = j - (i + offset[b])
        if not mask[(*b, head, i, j)] or (causal and ahead > 0):
            return False
        if isinstance(window, int) and ahead <= -window:
            return False
        if isinstance(window, tuple) and not -window[0] <= ahead <= window[1]:
            return False
        return of_q is None or of_q[(*b, i)] == of_k[(*b, j)]

    def logit(b, head, i, j):
        x = scale * sum(q[(*b, i, head, c)] * k[(*b, j, head // (h // h_kv), c)] for c in range(e))
        return (x if softcap is None else softcap * math.tanh(x / softcap)) + bias[(*b, head, i, j)]

    o = np.zeros((*n, t, h, v.shape[-1]))
    for number, (*b, head, i) in enumerate(np.ndindex(*n, h, t)):
        b = tuple(b)
        weight = {j: math.exp(logit(b, head, i, j)) for j in range(s) if sees(b, head, i, j)}
        total = sum(weight.values()) + (0.0 if sinks is None else math.exp(sinks[head]))
        for j, w in weight.items():
            if seed is not None:
                if threefry(seed, (number, j)) < dropout_rate * 2**32:
                    continue
                w = w / (1 - dropout_rate)
            o[(*b, i, head)] += w / total * v[(*b, j, head // (h // h_kv))]
    return o


def threefry(key, count):
    """The first word of Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers", 2011)."""
    word = 2**32 - 1
    keys = [int(key[0]), int(key[1]), int(key[0]) ^ int(key[1]) ^ 0x1BD11BDA]
    x, y = (count[0] + keys[0]) & word, (count[1] + keys[1]) & word
    for i in range(20):
        turn = [[13, 15, 26, 6], [17, 29, 16, 24]][i // 4 % 2][i % 4]
        x = (x + y) & word
        y = ((y << turn | y >> (32 - turn)) & word) ^ x
        if i % 4 == 3:
            step = i // 4 + 1
            x, y = (x + keys[step % 3]) & word, (y + keys[(step + 1) % 3] + step) & word
    return x
