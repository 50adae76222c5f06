from tests.naive.resize import axis_by_axis


def pad(x, padding, padding_mode="zeros"):
    def sees(axis, n, o):
        p = o - padding[axis][0]
        if padding_mode == "zeros":
            return [(p, 1.0)] if 0 <= p < n else []
        if padding_mode == "edge":
            return [(min(max(p, 0), n - 1), 1.0)]
        if padding_mode == "circular":
            return [(p % n, 1.0)]
        return [(-p if p < 0 else 2 * (n - 1) - p if p >= n else p, 1.0)]

    sizes = x.shape[-len(padding) - 1 : -1]
    return axis_by_axis(x, [low + n + high for n, (low, high) in zip(sizes, padding, strict=True)], sees)
