"""`python -m int8pass`: the command line."""

from int8pass.cli import main

if __name__ == "__main__":
    main()
