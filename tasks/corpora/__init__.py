"""Texts: where they come from, what is left out of them, how they are cut, and how they lie in the store."""
