"Small methods on the digits, always with the same weights: what the tests of the loop train"

import torch
from jepa_lit.backbones import ConvNet
from jepa_lit.checkpoints import own_random
from jepa_lit.datasets import channel_statistics, load
from jepa_lit.encoder import ViT
from jepa_lit.files import Files  # noqa: F401 (for the tests that import it from here)
from jepa_lit.ijepa import IJEPA
from jepa_lit.lejepa import LeJEPA, projector
from jepa_lit.predictor import Predictor
from jepa_lit.preprocess import Preprocess
from jepa_lit.training import param_groups
from jepa_lit.views import VIEWS, MultiCrop

KINDS = ['lejepa', 'ijepa']
data = load('digits').train
scale = channel_statistics(data)


def fresh(kind='lejepa'):
    "A method: 'lejepa', 'ijepa', 'wide' (another network), or 'color' (for three channels)"
    channels = 3 if kind == 'color' else 1
    with own_random(0, 'weights'):
        if kind == 'ijepa':
            encoder = ViT(32, 8, 16, 1, 2, in_chans=1)
            return IJEPA(
                encoder, Predictor(encoder.grid, 16, 8, 1, 2), steps=8, preprocess=Preprocess(32, *scale)
            )
        net = ConvNet(channels, (8, 24) if kind == 'wide' else (8, 16))
        head = projector(net.width, 16, 32, 2)
        views = MultiCrop(**{**VIEWS['digits'], 'global_views': 2, 'local_views': 0})
        pre = Preprocess(32, *([0.5] * 3, [0.25] * 3) if kind == 'color' else scale)
        return LeJEPA(net, head, 0.05, views, pre, slices=16)


def adamw(method, lr=2e-3):
    return torch.optim.AdamW(param_groups(method, 0.05), lr)


def equal(a, b):
    "To the bit, buffers and all"
    for (k, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(x, y), k


def dropping(kind, share=0.1):
    "A method with a user's dropout, whose numbers come from the global generators"
    method = fresh(kind)
    part = method.encoder if kind == 'ijepa' else method.backbone
    part.register_forward_hook(
        lambda module, given, out: torch.nn.functional.dropout(out, share, module.training)
    )
    return method
