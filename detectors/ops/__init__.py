"""Pure functions of a single image; callers batch them with ``vmap``."""
