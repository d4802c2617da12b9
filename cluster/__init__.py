"""Ray, and nothing but Ray: one job per file, thin. The mathematics is in the other packages."""
