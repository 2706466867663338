"""``python cli.py`` in a checkout does what the installed ``hbench`` command does."""

from hbench.cli import main

if __name__ == "__main__":
    main()
