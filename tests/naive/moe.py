import math

import numpy as np

ACTIVATIONS = {
    "silu": lambda z: z / (1 + np.exp(-z)),
    "relu": lambda z: np.maximum(z, 0),
    "gelu": lambda z: z * np.vectorize(lambda u: (1 + math.erf(u / math.sqrt(2))) / 2)(z),
    "gelu_tanh": lambda z: z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
}


def moe(params, x, k=2, activation="silu", renormalise=True, capacity=None):
    router, experts, t = params["router"], params["router"]["w"].shape[1], x.shape[-2]
    act = ACTIVATIONS[activation]
    y, load, mass, z, dropped, n = np.zeros_like(x), np.zeros(experts), np.zeros(experts), 0.0, 0, 0
    for at in np.ndindex(*x.shape[:-2]):
        taken = [0] * experts
        for i in range(t):
            row = x[(*at, i)]
            p = np.exp(row @ router["w"] + (0 if router.get("b") is None else router["b"]))
            z, p, n = z + math.log(p.sum()) ** 2, p / p.sum(), n + 1
            mass += p
            best = sorted(range(experts), key=lambda e: (-p[e], e))[:k]
            for e in best:
                load[e] += 1
                taken[e] += 1
                if capacity is not None and taken[e] > math.ceil(capacity * k * t / experts):
                    dropped += 1
                    continue
                gate = p[e] / sum(p[best]) if renormalise else p[e]
                y[(*at, i)] += gate * expert(params, e, row, act)
    n = max(n, 1)
    load = load / (n * k)
    return y, {"balance": experts * (load * mass / n).sum(), "z": z / n, "load": load, "dropped": dropped}


def expert(params, e, row, act):
    def through(name, v):
        part = params[name]
        return v @ part["w"][e] + (0 if part.get("b") is None else part["b"][e])

    up = through("up", row)
    return through("down", act(up) if params.get("gate") is None else act(through("gate", row)) * up)
