import numpy as np

from tests.naive.conv import conv


def conv_transpose(
    params,
    x,
    stride=1,
    padding="same",
    dilation=1,
    groups=1,
    padding_mode="zeros",
    output_shape=None,
):
    """⟨conv u, x⟩ = ⟨u, conv_transpose x⟩ for every u: element by element, u the unit images."""
    w, b = params["w"], params.get("b")
    d = w.ndim - 2
    kernel, c = w.shape[:d], w.shape[-2] * groups
    lead, outs = x.shape[: -d - 1], x.shape[-d - 1 : -1]
    stride = (stride,) * d if isinstance(stride, int) else stride
    dilation = (dilation,) * d if isinstance(dilation, int) else dilation
    sizes = output_shape
    if sizes is None:
        sizes = []
        for a, (o, k, s, e) in enumerate(zip(outs, kernel, stride, dilation, strict=True)):
            cut = 0 if isinstance(padding, str) else sum(padding[a])
            least = (o - 1) * s + e * (k - 1) + 1 - cut if o else 0
            sizes.append(o * s if padding in ("same", "causal") else least)
    y = np.zeros((*lead, *sizes, c))
    for at in np.ndindex(*sizes, c):
        unit = np.zeros((1, *sizes, c))
        unit[(0, *at)] = 1.0
        seen = conv({"w": w}, unit, stride, padding, dilation, groups, padding_mode)[0]
        for n in np.ndindex(*lead):
            y[(*n, *at)] = (seen * x[n]).sum() + (0.0 if b is None else b[at[-1]])
    return y
