"""Learns to generate networks from a zoo, and shows what that is worth.

A generator is one object (`artefact`): what its metrics mean (`channels`), a space of networks
(`coordinates`), a denoiser over their tokens (`model`, `gpt`), and how to sample it (`sampling`). `training`
makes one of pairs of a zoo's checkpoints, `prompt` and `calibration` use it, `evaluation` and `audit` judge
it, `comparison` holds many against each other, `report` shows what was found.
"""
