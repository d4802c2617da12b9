from types import SimpleNamespace

from .sgd import SGD

OPTIMIZERS = {n: SimpleNamespace(lr_ratio=1.0) for n in ("sgd", "adamw", "lion", "tiger", "amos")}


def make_optimizer(name, params, *, lr, weight_decay, momentum, compile=False):
    return SGD(params.values(), lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=True)
