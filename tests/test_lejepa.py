"LeJEPA on other backbones, and the README's ten lines"
import re
from pathlib import Path
import pytest, torch, torchvision
from torch import nn
from jepa_lit.encoder import ConvNet, Preprocess
from jepa_lit.lejepa import LeJEPA, infer_width, pooled, prediction
from jepa_lit.views import MultiCrop

root = Path(__file__).resolve().parent.parent

class Tokens(nn.Module):
    "A backbone that gives tokens (b n d)"
    def __init__(self): super().__init__(); self.proj = nn.Conv2d(3, 12, 8, 8)
    def forward(self, x): return self.proj(x).flatten(2).mT


@pytest.mark.parametrize('make,width', [(lambda: torchvision.models.resnet18(num_classes=40), 40), (lambda: torchvision.models.mobilenet_v3_small(num_classes=24), 24),
                                        (lambda: torchvision.models.convnext_tiny(num_classes=16), 16), (lambda: torchvision.models.swin_t(num_classes=16), 16),
                                        (Tokens, 12), (lambda: ConvNet(3, (8, 16)), 16)])
def test_backbones(make, width):
    net = make()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert infer_width(net) == width and net.training
    for k, v in net.state_dict().items(): assert torch.equal(v, before[k]), k
    method = LeJEPA(net, slices=8, views=MultiCrop(2, 1, global_size=32, local_size=32))
    views = method.prepare(torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8), torch.Generator().manual_seed(0))
    loss, logs = method(views); loss.backward()
    assert loss.isfinite() and set(logs) == {'prediction', 'sigreg'} and not any(v.requires_grad for v in logs.values())
    assert method.eval().embed(torch.rand(2, 3, 40, 40)).shape == (2, width)


def test_readme_example():
    "The ten lines of the README train: run as they stand, on random images"
    blocks = re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(), re.S)
    code = next(b for b in blocks if 'resnet18' in b and 'loader' in b)
    scope = dict(loader=[torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8) for _ in range(2)])
    exec(code, scope)
    assert scope['loss'].isfinite() and any(p.grad is not None and p.grad.abs().sum() > 0 for p in scope['net'].parameters())


def test_convex_and_symmetric():
    torch.manual_seed(0); z = torch.randn(5, 7, 3, dtype=torch.float64)
    order = torch.randperm(7)
    torch.testing.assert_close(prediction(z, 2), prediction(z[:, order], 2))
    torch.testing.assert_close(prediction(z, 2), prediction(z[[1, 0, 4, 2, 3]], 2))           # views within their kind
    assert prediction(z, 5) <= prediction(z, 2)                                                # the centre of all is nearest to all


@pytest.mark.parametrize('images', [torch.full((2, 1, 32, 32), float('nan')), torch.zeros(2, 1, 32, 32, dtype=torch.int64), torch.zeros(2, 32, 32), torch.zeros(2, 2, 32, 32)])
def test_bad_images(images, unchecked):
    method = LeJEPA(ConvNet(1, (8,)), slices=4, preprocess=Preprocess(32, (.5,), (.2,))).eval()
    with pytest.raises((ValueError, TypeError)) as e: method.embed(images)
    assert '\n' not in str(e.value)
