"""Helpers: atomic files, configs, export, paths, dependencies."""
