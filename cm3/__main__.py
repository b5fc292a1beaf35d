"""`python -m cm3`: the `cm3` command."""

from cm3.cli.main import main

if __name__ == "__main__":
    main()
