"""`python -m simulator.rtl` prints the paths of the array's SystemVerilog files, for other tools' command lines."""

from simulator.rtl.sources import FOLDER, MULTIPLIER, SOURCES

if __name__ == "__main__":
    print(*(FOLDER / name for name in (*SOURCES, MULTIPLIER)))  # noqa: T201
