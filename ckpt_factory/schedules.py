import math


def lr_factor(name, step, num_steps, every=1):
    step -= step % every
    return 0.5 * (1 + math.cos(math.pi * step / num_steps)) if name == "cosine" else 1.0
