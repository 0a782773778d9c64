"""The commands, one module each. The table of them is in `parser`, so that `relayd --help` loads none.

Each module has two functions:

    def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None
        Its flags; imports no more than those need. `all_help`: also name those that --help leaves out.

    def run(args: argparse.Namespace) -> int
        Does it. The exit status. Raises RelaydError.
"""
