"""Each a function of one number, or of a gate and an up, over a loop."""

import math

import numpy as np


def each(f):
    def loop(*arrays, **options):
        y = np.zeros(arrays[0].shape)
        for n in np.ndindex(*y.shape):
            y[n] = f(*(float(a[n]) for a in arrays), **options)
        return y

    return loop


def clipped(x, low, high):
    return min(max(x, low), high)


def logistic(x):
    return 1 / (1 + math.exp(-x))


def normal(x, approximate):
    if approximate:
        return (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return math.erfc(-x / math.sqrt(2)) / 2


def gelu_of(x, approximate=False):
    return x * normal(x, approximate)


relu = each(lambda x: max(x, 0.0))
leaky_relu = each(lambda x, negative_slope=0.01: max(x, 0.0) + negative_slope * min(x, 0.0))
relu6 = each(lambda x: clipped(x, 0.0, 6.0))
hard_tanh = each(lambda x, min_val=-1.0, max_val=1.0: clipped(x, min_val, max_val))
hard_sigmoid = each(lambda x, alpha=1 / 6, beta=0.5: clipped(alpha * x + beta, 0.0, 1.0))
hard_silu = each(lambda x: x * clipped(x + 3, 0.0, 6.0) / 6)
hard_shrink = each(lambda x, lambd=0.5: 0.0 if abs(x) <= lambd else x)
soft_shrink = each(lambda x, lambd=0.5: math.copysign(max(abs(x) - lambd, 0.0), x))
tanh_shrink = each(lambda x: x - math.tanh(x))
threshold = each(lambda x, threshold, value: x if x > threshold else value)
elu = each(lambda x, alpha=1.0: x if x > 0 else alpha * math.expm1(x))
celu = each(lambda x, alpha=1.0: max(x, 0.0) + min(alpha * math.expm1(x / alpha), 0.0))
selu = each(
    lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
)
sigmoid = each(logistic)
tanh = each(math.tanh)
softsign = each(lambda x: x / (1 + abs(x)))
softplus = each(lambda x, beta=1.0: math.log1p(math.exp(beta * x)) / beta)
log_sigmoid = each(lambda x: math.log(logistic(x)))
silu = each(lambda x: x * logistic(x))
quick_gelu = each(lambda x: x * logistic(1.702 * x))
mish = each(lambda x: x * math.tanh(math.log1p(math.exp(x))))
gelu = each(gelu_of)
glu = each(lambda gate, up: logistic(gate) * up)
geglu = each(lambda gate, up, approximate=False: gelu_of(gate, approximate) * up)
swiglu = each(lambda gate, up: gate * logistic(gate) * up)
