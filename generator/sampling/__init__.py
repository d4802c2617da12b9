"""From noise to networks: the diffusion's path, its samplers, their noise and their steps."""
