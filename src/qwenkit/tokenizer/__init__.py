"""Text to token ids and back, for every vocabulary format the supported models come with."""
