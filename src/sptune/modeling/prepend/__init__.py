"""Prompts in front of the text (`placement="prepend"`): families, masks, positions, caches. `add` needs none of it."""
