"""Finding, reading and writing checkpoints."""
