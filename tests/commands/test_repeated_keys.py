"""Keys that are typed twice in a mapping on the command line."""

import pytest

from mergeability.commands.repeated_keys import refuse_repeated_keys
from mergeability.errors import UserError


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("suite.models={a: x.pt, b: y.pt, a: z.pt}", "'a'"),
        ("suite.models={a: {weights: x, images: p}, b: {weights: y, weights: z}}", "'weights'"),
        ("+merge.ties.options={x:1,x:1}", "'x'"),
        ("pairs=[{a: 1, a: 2}]", "'a'"),
    ],
)
def test_a_repeated_key_is_refused(argument, key):
    option = argument.partition("=")[0].lstrip("+")
    with pytest.raises(UserError, match=rf"^{option} has {key} twice"):
        refuse_repeated_keys(["-m", "suite=models", argument])


@pytest.mark.parametrize(
    "argument",
    [
        "suite.models={a: x, b: {a: 1, b: 2}}",
        "x='{a: 1, a: 2}'",
        "x={a: ",
        "x={}",
        "hydra.run.dir=a{b}c",
        "--cfg=job",
        "suite.models={a: x, A: y}",
    ],
)
def test_all_else_is_left_to_hydra(argument):
    refuse_repeated_keys([argument])


def test_the_command_ends_with_the_sentence(command):
    ended = command("analyze", "suite=checkpoints", "suite.base=b", "suite.models={a: x, a: y}")
    assert ended.code == 1
    assert ended.output.strip() == ("Error: suite.models has 'a' twice. Give each entry a different name.")
