import numpy as np


def mse(prediction, target):
    y = np.zeros(prediction.shape[:-1])
    for n in np.ndindex(*y.shape):
        y[n] = sum((p - t) ** 2 for p, t in zip(prediction[n], target[n], strict=True)) / prediction.shape[-1]
    return y
