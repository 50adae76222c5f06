import itertools

import numpy as np


def windows(x, kernel, stride, padding, dilation=1):
    """An empty y, and for each of its places the elements of x that the window sees, in C order."""
    d = len(kernel)
    stride = kernel if stride is None else (stride,) * d if isinstance(stride, int) else stride
    dilation = (dilation,) * d if isinstance(dilation, int) else dilation
    lead, sizes, channels = x.shape[: -d - 1], x.shape[-d - 1 : -1], x.shape[-1]
    low, out = [], []
    for size, k, s, e, a in zip(sizes, kernel, stride, dilation, range(d), strict=True):
        reach = e * (k - 1)
        if padding == "same":
            total = max((-(-size // s) - 1) * s + reach + 1 - size, 0)
            pair = total // 2, total - total // 2
        elif padding == "causal":
            pair = reach, 0
        else:
            pair = (0, 0) if padding == "valid" else padding[a]
        low.append(pair[0])
        out.append(max((size + sum(pair) - reach - 1) // s + 1, 0))

    def look():
        for n, o, c in itertools.product(np.ndindex(*lead), np.ndindex(*out), range(channels)):
            elements = []
            for k in np.ndindex(*kernel):
                p = [o[a] * stride[a] + k[a] * dilation[a] - low[a] for a in range(d)]
                if all(0 <= p[a] < sizes[a] for a in range(d)):
                    elements.append(x[(*n, *p, c)])
            yield (*n, *o, c), elements

    return np.zeros((*lead, *out, channels)), look()


def avg_pool(x, kernel, stride=None, padding="valid", dilation=1):
    y, seen = windows(x, kernel, stride, padding, dilation)
    for place, elements in seen:
        y[place] = sum(elements) / len(elements)
    return y
