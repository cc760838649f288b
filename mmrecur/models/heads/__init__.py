"""Heads, each imported by the configs that use it: they need the library whose head they build on."""
