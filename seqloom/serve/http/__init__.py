"""The OpenAI API over HTTP, and the chat page."""
