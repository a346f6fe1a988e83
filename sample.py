"""Samples images from a checkout; the same as the installed command llamagen-sample."""

from llamagen_jax.sample import main

if __name__ == "__main__":
    main()
