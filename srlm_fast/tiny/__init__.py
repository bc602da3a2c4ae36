"""The embedded default: a synthetic world, its seeds, a small model and the script that made it."""
