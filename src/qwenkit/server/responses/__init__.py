"""OpenAI's newer protocol: responses, which may be stored and run in the background."""
