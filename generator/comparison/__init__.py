"""Many trainings side by side: sweeps, ablations, what a step costs."""
