"""The tree of errors."""

import inspect

from mllama_cli.core import errors


def test_the_tree_at_the_top_of_the_file_is_whole_and_says_what_each_error_says() -> None:
    for name, error in inspect.getmembers(errors, inspect.isclass):
        [line] = [line for line in (errors.__doc__ or "").splitlines() if name in line.replace("--", " ").split()]
        if error.__base__ is errors.UsageError:
            assert line.startswith("|   "), name
        if error is not errors.MllamaError:
            said = (error.__doc__ or "").rstrip(".")
            assert said.casefold() in line.casefold(), name
