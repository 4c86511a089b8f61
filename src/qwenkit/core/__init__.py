"""Types, errors and lazy loading that every other layer may use."""
