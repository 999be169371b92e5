"""Random arguments of `compare`, `predict`, `merge`, `list`, `show` and `dashboard`: a result or one message, no traceback."""

import random

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mergeability.commands.cli import cli
from mergeability.commands.invocation import started_as
from mergeability.commands.search_path import forget_own_folders

IN_EACH_RUN, IN_THE_SLOW_TIER = 12, 600
ODD = (
    *(
        "",
        "x",
        "[",
        "(",
        "*",
        "{a: 1}",
        "-1",
        "0",
        "1e999",
        "nan",
        "-inf",
        "1e-1",
        "True",
        "null",
        "~",
        "9" * 400,
    ),
    *(
        "a=b",
        "=",
        "a=",
        "=b",
        "model0=x",
        "model0=[",
        "model0=a,b",
        "model0=/tmp",
        "a" * 5000,
        "\udcff",
        "ä\u202e",
    ),
    *(
        "/dev/null",
        "/proc/self/mem",
        "/nowhere/x",
        "../..",
        ".",
        "~/x",
        "$HOME",
        "http://a/b",
        "owner/name",
        "(?P<a",
    ),
    *(
        "best",
        "ties",
        "none",
        "--",
        "-",
        "int8",
        "float8_e4m3fn",
        "complex64",
        "cuda:99",
        "tpu",
        "\\",
        "2026-13-45",
    ),
)
METHODS = ("average", "ties", "dare", "ta", "breadcrumbs", "slerp", "best")
METHOD_OPTIONS = ("density", "alpha", "agg", "seed", "then", "scope", "gamma", "x")


def drawn(generator: random.Random) -> list[str]:
    """Draw a command line."""
    command = generator.choice(["compare", "merge", "merge", "predict", "show", "list", "dashboard"])
    words = [command]
    if command in ("compare", "merge", "predict"):
        whole = generator.random() < 0.8
        files = ["base.safetensors", "model0.safetensors", "model1.safetensors"]
        words += files if whole else generator.choices([*files, *ODD], k=generator.randrange(4))
    if command == "merge":
        words += ["--overwrite", "--out", "out", "--method", generator.choice([*METHODS, *METHODS, *ODD])]
        if generator.random() < 0.5:
            words += ["--option", f"{generator.choice(METHOD_OPTIONS)}={generator.choice(ODD)}"]
    if command in ("show", "list"):
        words.append(generator.choice([*ODD, "metric"]))
    named = [
        option.opts[0]
        for option in cli.commands[command].params
        if option.opts[0].startswith("-") and not getattr(option, "is_flag", False)
    ]
    for _ in range(generator.randrange(3) if named else 0):
        words += [generator.choice(named), generator.choice(ODD)]
    return words


@pytest.fixture
def files(tmp_path, monkeypatch, restored_logging):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEABILITY_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    base = {"layer.weight": torch.randn(16, 16, generator=generator)}
    save_file(base, "base.safetensors")
    for number in range(2):
        tuned = {name: one + 0.01 * torch.randn(16, 16, generator=generator) for name, one in base.items()}
        save_file(tuned, f"model{number}.safetensors")
    yield
    started_as(None)
    forget_own_folders()


def check(seeds: range) -> None:
    codes = set()
    for seed in seeds:
        words = drawn(random.Random(seed))
        ended = CliRunner().invoke(cli, words, prog_name="mergeability")
        assert ended.exception is None or isinstance(ended.exception, SystemExit), (
            seed,
            words,
            ended.exc_info,
        )
        # Code 2 is that of an argument that click refuses, with the usage above its message.
        assert ended.exit_code in (0, 1, 2), (seed, words)
        assert ended.exit_code == 0 or "Error: " in ended.output, (seed, words)
        codes.add(ended.exit_code)
    assert {0, 1} <= codes


@pytest.mark.filterwarnings("ignore")
def test_a_sample_ends_in_a_result_or_a_message(files):
    check(range(IN_EACH_RUN))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_end_in_a_result_or_a_message(files):
    check(range(IN_EACH_RUN, IN_THE_SLOW_TIER))
