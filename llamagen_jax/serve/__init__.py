"""Generators behind servers."""
