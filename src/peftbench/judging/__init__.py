"""Answers judged by another model: a chat-completions service, or a model in a folder."""
