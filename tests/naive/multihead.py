import numpy as np

from tests.naive.attention import attention


def multihead(params, x, causal=False, mask=None):
    def project(p, row):
        """row [*inputs] times w [*inputs, *outputs]."""
        out = np.zeros(p["w"].shape[row.ndim :])
        for j in np.ndindex(*out.shape):
            out[j] = sum(row[i] * p["w"][(*i, *j)] for i in np.ndindex(*row.shape))
            out[j] += 0 if p.get("b") is None else p["b"][j]
        return out

    def each(p, rows, inputs):
        lead = rows.shape[: rows.ndim - inputs]
        out = np.zeros((*lead, *p["w"].shape[inputs:]))
        for n in np.ndindex(*lead):
            out[n] = project(p, rows[n])
        return out

    q, k, v = (each(params[name], x, 1) for name in "qkv")
    return each(params["o"], attention(q, k, v, causal, mask), 2)
