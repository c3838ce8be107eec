"""`python -m cljax COMMAND ...`, and `cljax COMMAND ...` once it is installed: the launchers by one name."""

from launch.commands import main

if __name__ == "__main__":
  main()
