"""How results lie in the store: objects, artifacts that are whole or absent, claims, parts of what isn't finished."""
