"What tests of masks share: are they sound, and are counts uniform"

import numpy as np, torch


def real(m):
    return torch.ones_like(m.context, dtype=torch.bool) if m.mask is None else m.mask


def sound(m, n, batch, targets=4):
    "Types, shapes, range, order, no patch twice, none in common"
    c, t, r = m.context, m.targets, real(m)
    assert (
        c.dtype == t.dtype == torch.int64
        and r.dtype == torch.bool
        and c.device.type == t.device.type == 'cpu'
    )
    assert (
        c.shape[0] == batch
        and t.shape[:2] == (targets, batch)
        and c.shape[1] >= 1
        and t.shape[2] >= 1
        and r.shape == c.shape
    )
    assert 0 <= c.min() and c.max() < n and 0 <= t.min() and t.max() < n
    assert (t[..., 1:] > t[..., :-1]).all() and ((c[:, 1:] > c[:, :-1]) | ~r[:, 1:]).all()
    seen = torch.zeros(batch, n).scatter_add_(1, c, r.float())
    hidden = torch.zeros(batch, n).scatter_(1, t.transpose(0, 1).flatten(1), 1.0)
    assert seen.max() == 1 and not (seen * hidden).any()
    assert (
        r[:, 0].all() and (r[:, :-1] | ~r[:, 1:]).all() and (seen.gather(1, c) == 1).all()
    )  # real ones first; padding repeats one
    return True


def excess(counts):
    "Chi-square against uniform, in standard deviations above its mean"
    counts = np.asarray(counts, float).ravel()
    k = len(counts)
    return (((counts - counts.mean()) ** 2 / counts.mean()).sum() - (k - 1)) / (2 * (k - 1)) ** 0.5
