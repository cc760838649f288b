"""Heads. A config imports the module of a head that it uses, since each needs the library that it extends."""
