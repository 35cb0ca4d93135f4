"""A model leaves the house: its card, what speaks against it, and where it goes."""
