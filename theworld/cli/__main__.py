"""`python -m theworld.cli`, where the `theworld` script is not on the path."""

from theworld.cli import main

if __name__ == "__main__":
    main()
