import numpy as np

from tests.naive.attention import attention
from tests.naive.rms_norm import rms_norm
from tests.naive.rope import rope as turned


def multihead(params, x, bias=None, rope=None, positions=None, norm_eps=1e-6, **options):
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
    q, k = (
        z if params.get(p) is None else rms_norm(params[p], z, norm_eps)
        for p, z in (("q_norm", q), ("k_norm", k))
    )
    if rope is not None:
        q, k = turned(q, rope, positions), turned(k, rope, positions)
    return each(params["o"], attention(q, k, v, bias, params.get("sinks"), **options), 2)
