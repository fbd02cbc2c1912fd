"""Run the command line: `python -m speechgpt2`."""

from speechgpt2.cli import main

if __name__ == "__main__":
    main()
