"""``python -m mllama_cli`` and the ``mllama`` script."""

from mllama_cli.cli.app import app


def main() -> None:
    app(prog_name="mllama")


if __name__ == "__main__":
    main()
