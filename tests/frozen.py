"""Exempt what was imported before this module from garbage collection, which takes long in every forked process."""

import gc

gc.freeze()
