"""The version, kept apart so that packaging and the command line read it without importing anything else."""

__version__ = "0.1.0.dev0"
