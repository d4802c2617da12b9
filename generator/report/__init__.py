"""What was found, as figures and pages to look at."""
