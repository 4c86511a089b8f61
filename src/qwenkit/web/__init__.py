"""The chat page: static files and what answers requests for them. Knows nothing of the API that they call."""
