"""Joint-embedding predictive architectures, from the mathematics up.

A JEPA learns without labels: it predicts the *embedding* of one part or view of its input from another, never the
pixels. What keeps the embeddings from collapsing to a constant tells the methods apart:

`IJEPA`    predicts the features of hidden blocks of an image from one visible context; the features come from a
           target encoder, an exponential moving average (`EMA`) of the encoder in training.
`LeJEPA`   predicts each view's embedding from the others, on any backbone; `SIGReg` keeps the embeddings an
           isotropic Gaussian, and no teacher, no stop-gradient and no schedule is needed.

In a loop of your own:

    from jepa_lit import LeJEPA, MultiCrop
    method = LeJEPA(backbone, views=MultiCrop(global_views=2, local_views=4))
    loss, logs = method(method.prepare(images))          # images: uint8 (b c h w)

Or whole runs, from Python (`recipe`, `fit`, `load_run`) or a terminal (`jepa_lit_train --help`).

The parts, each a numbered notebook and a module of the same name:

    start            data, files, datasets, preprocess
    I-JEPA           patches, encoder, masks, sampler, predictor, ema, ijepa, plain
    what was learned collapse, probes, pictures, selection
    LeJEPA           gaussian, normality, slices, sigreg, colors, views, convolution, backbones, lejepa
    a run            checkpoints, training, callbacks, recipes, runs, weights
    many machines    parallel, launch, archives, shards, cost
    in use           pretrained, experiment, commands, bench

Names are loaded when they are first used, so `import jepa_lit` costs nothing; `__init__.pyi` lists them.
"""

__version__ = "0.2.0"

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
