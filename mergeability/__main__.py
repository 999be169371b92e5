"""The command `mergeability`; `python -m mergeability` is the same."""


def main() -> None:
    """Run the command line."""
    from mergeability.commands.cli import cli

    cli(prog_name="mergeability")


if __name__ == "__main__":
    main()
