import itertools

import numpy as np


def conv(params, x, stride=1, padding="same", dilation=1, groups=1, padding_mode="zeros"):
    w, b = params["w"], params.get("b")
    d = w.ndim - 2
    kernel, c_in, c_out = w.shape[:d], w.shape[-2], w.shape[-1]
    lead, sizes = x.shape[: -d - 1], x.shape[-d - 1 : -1]
    stride = (stride,) * d if isinstance(stride, int) else stride
    dilation = (dilation,) * d if isinstance(dilation, int) else dilation
    low, out = [], []
    for a in range(d):
        reach = dilation[a] * (kernel[a] - 1) + 1
        if padding == "same":
            total = max((-(-sizes[a] // stride[a]) - 1) * stride[a] + reach - sizes[a], 0)
            pair = total // 2, total - total // 2
        else:
            pair = (
                {"valid": (0, 0), "causal": (reach - 1, 0)}.get(padding)
                if isinstance(padding, str)
                else padding[a]
            )
        low.append(pair[0])
        out.append(max((sizes[a] + sum(pair) - reach) // stride[a] + 1, 0))

    def at(p, size):
        """The element that stands at position p, or None for a zero."""
        if padding_mode == "circular":
            return p % size
        if padding_mode == "reflect":
            return -p if p < 0 else 2 * (size - 1) - p if p >= size else p
        return p if 0 <= p < size else None

    y = np.zeros((*lead, *out, c_out))
    for n, o, j in itertools.product(np.ndindex(*lead), np.ndindex(*out), range(c_out)):
        group = j // (c_out // groups)
        total = 0.0 if b is None else b[j]
        for k in np.ndindex(*kernel):
            p = [at(o[a] * stride[a] + k[a] * dilation[a] - low[a], sizes[a]) for a in range(d)]
            if None not in p:
                total += sum(x[(*n, *p, group * c_in + i)] * w[(*k, i, j)] for i in range(c_in))
        y[(*n, *o, j)] = total
    return y
