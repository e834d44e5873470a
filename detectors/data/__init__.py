"""Images and their objects: built-in, or on disk."""
