"""What a generator is worth, on held-out runs and the test split."""
