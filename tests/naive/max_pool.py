from tests.naive.avg_pool import windows


def max_pool(x, kernel, stride=None, padding="valid", dilation=1):
    y, seen = windows(x, kernel, stride, padding, dilation)
    for place, elements in seen:
        y[place] = elements[0]
        for v in elements[1:]:
            y[place] = v if v > y[place] else y[place]
    return y
