"""Conversations to prompts, and replies to content, reasoning and calls."""
