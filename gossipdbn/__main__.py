"""``python -m gossipdbn``: the same program as the console script, for processes started by other ones."""

from gossipdbn.cli.app import main

if __name__ == "__main__":
    main()
