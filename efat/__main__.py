"""Run the command as `python -m efat`."""

from efat.cli import main

if __name__ == "__main__":
    main()
