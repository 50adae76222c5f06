from tests.naive.group_norm import group_norm


def instance_norm(params, x, eps=1e-5, spatial=None):
    return group_norm(params, x, x.shape[-1], eps, spatial)
