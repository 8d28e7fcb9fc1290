"""Programs that show mmds at work: `make demo` runs them one after the other."""
