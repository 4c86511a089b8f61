"""The ``qwenkit`` command. One short module per command; whatever is heavy is imported inside the command function."""
