import itertools

import numpy as np


def places(sizes, kernel, stride, padding, dilation):
    """The sizes of the output, and of each (o, k) the position in x, which may lie beyond its border."""
    d = len(kernel)
    stride, dilation = ((v,) * d if isinstance(v, int) else v for v in (stride, dilation))
    low, out = [], []
    for a in range(d):
        reach = dilation[a] * (kernel[a] - 1) + 1
        total = max((-(-sizes[a] // stride[a]) - 1) * stride[a] + reach - sizes[a], 0)
        named = {"same": (total // 2, total - total // 2), "valid": (0, 0), "causal": (reach - 1, 0)}
        pair = named[padding] if isinstance(padding, str) else padding[a]
        low.append(pair[0])
        out.append(max((sizes[a] + sum(pair) - reach) // stride[a] + 1, 0))

    def look():
        for o, (i, k) in itertools.product(np.ndindex(*out), enumerate(np.ndindex(*kernel))):
            p = tuple(o[a] * stride[a] + k[a] * dilation[a] - low[a] for a in range(d))
            if all(0 <= p[a] < sizes[a] for a in range(d)):
                yield o, i, p

    return out, look()


def patches(x, kernel, stride=1, padding="valid", dilation=1):
    d, c = len(kernel), x.shape[-1]
    out, look = places(x.shape[-d - 1 : -1], kernel, stride, padding, dilation)
    y = np.zeros((*x.shape[: -d - 1], *out, int(np.prod(kernel)) * c))
    for o, i, p in look:
        for n in np.ndindex(*x.shape[: -d - 1]):
            y[(*n, *o)][i * c : (i + 1) * c] = x[(*n, *p)]
    return y
