"""What both services and their users share: words, messages, broker names, client."""
