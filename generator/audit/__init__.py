"""Whether a generator makes networks or copies them."""
