import numpy as np


def nll(prediction, labels, ignore_index=None):
    y = np.zeros(prediction.shape[:-1])
    for n in np.ndindex(*y.shape):
        if 0 <= labels[n] < prediction.shape[-1] and labels[n] != ignore_index:
            y[n] = -prediction[n][labels[n]]
    return y
