import inspect

import pytest

from edge_runtime import errors
from edge_runtime.errors import BundleError, EdgeError

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass)]


def test_every_class_is_listed_and_drawn_in_the_tree():
    names = {cls.__name__ for cls in CLASSES}
    assert names == set(errors.__all__)
    drawn = {line.replace("|", " ").replace("+--", " ").replace("`--", " ").split()[0] for line in _tree_lines()}
    assert drawn == names


def test_the_drawn_exit_codes_are_the_real_ones():
    for line in _tree_lines():
        words = line.replace("|", " ").replace("+--", " ").replace("`--", " ").replace("exit code", " ").split()
        assert getattr(errors, words[0]).exit_code == int(words[1])


@pytest.mark.parametrize("cls", CLASSES)
def test_one_except_catches_all_and_the_hint_is_shown(cls):
    with pytest.raises(EdgeError) as caught:
        raise cls("the value 7 is wrong", hint="use 8")
    assert str(caught.value) == "the value 7 is wrong (use 8)"
    assert (caught.value.message, caught.value.hint) == ("the value 7 is wrong", "use 8")


def test_a_bundle_error_reports_every_fault():
    error = BundleError("x.nnf is damaged", faults=("weights.bin: sha256 differs", "extra.txt: not listed"))
    assert str(error).splitlines() == [
        "x.nnf is damaged",
        "  - weights.bin: sha256 differs",
        "  - extra.txt: not listed",
    ]


def _tree_lines():
    lines = errors.__doc__.splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]
