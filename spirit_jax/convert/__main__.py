"""`python -m spirit_jax.convert`."""

from spirit_jax.convert.command import main

if __name__ == "__main__":
    main()
