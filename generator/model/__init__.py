"""WeightDiT: a diffusion transformer over the tokens of networks."""
