"""Trains from a checkout; the same as the installed command llamagen-train."""

from llamagen_jax.train import run

if __name__ == "__main__":
    run()
