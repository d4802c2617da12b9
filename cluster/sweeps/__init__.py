"""Many trainings on the cluster: sweeps with Ray Tune, ablations, and what judges them."""
