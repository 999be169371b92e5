"""Implement the command `mergeability` with its subcommands.

Imports are inside functions: `mergeability --help` loads neither PyTorch nor Hydra.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from mergeability import __version__
from mergeability.commands.invocation import as_typed, started_as
from mergeability.commands.verb_arguments import (
    NO_STORE,
    by_name,
    classes,
    named_models,
    option_values,
    progress,
    say_report,
    sentences,
    start_hashing,
    store_folder,
)
from mergeability.errors import UserError, printable

_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Options of a command: mergeability COMMAND --help. What a metric or method is: mergeability show NAME.",
)
@click.version_option(__version__, prog_name="mergeability")
def cli() -> None:
    """Will these fine-tuned models merge well, with which method, and why?"""
    started_as("mergeability")


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options that the three verbs share."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text."),
        click.option(
            "--store",
            metavar="DIR",
            help="Where computed values are kept for the next call [default: outputs/store if it exists, or else the "
            f"user's cache folder]; '{NO_STORE}' keeps nothing.",
        ),
        click.option("--exclude", multiple=True, metavar="REGEX", help="Tensors to leave out, by name."),
        click.option("--include", multiple=True, metavar="REGEX", help="Tensors to use, by name."),
        click.argument("models", nargs=-1, metavar="MODEL..."),
        click.argument("base", metavar="BASE"),
    ):
        command = decorate(command)
    return command


def _evidence(purpose: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options that say what a prediction is based on.

    Args:
        purpose: the first words of the help of each option.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--device", default="auto", show_default=True, help=f"{purpose}cpu, cuda, or auto."),
            click.option(
                "--fitted",
                metavar="RUN",
                help=f"{purpose}Folder of an analysis whose fitted predictor is used.",
            ),
            click.option(
                "--model",
                metavar="NAME",
                help=f"{purpose}The architecture [default: recognised by its shapes].",
            ),
            click.option(
                "--template",
                multiple=True,
                metavar="TEXT",
                help=f"{purpose}A sentence around class names, with {{}}.",
            ),
            click.option(
                "--head",
                multiple=True,
                metavar="NAME=FILE",
                help=f"{purpose}A saved head, instead of class names.",
            ),
            click.option(
                "--classes",
                multiple=True,
                metavar="NAME=a,b,…",
                help=f"{purpose}Names of a model's classes, or a text file with one per line.",
            ),
            click.option(
                "--images",
                multiple=True,
                metavar="NAME=DIR",
                help=f"{purpose}Unlabelled images of a model's task, 8 or more; for every model.",
            ),
        ):
            command = option(command)
        return command

    return decorate


@cli.command(short_help="Measure how models of one base relate; no data are needed.")
@_common
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help="A metric, instead of the default 18."
)
@click.option("--both-towers", is_flag=True, help="Compare the text tower of a CLIP as well.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR", help="Write a report and tables there."
)
def compare(
    base: str,
    models: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    store: str | None,
    as_json: bool,
    metrics: tuple[str, ...],
    both_towers: bool,
    report: Path | None,
) -> None:
    """Compare two or more models that were fine-tuned from BASE; no data are needed.

    BASE and each MODEL are a file (safetensors or PyTorch), a folder as save_pretrained writes it, or an id on the
    Hugging Face hub; a MODEL may be the folder of a LoRA adapter. A path that exists is never looked for on the hub.
    NAME=PATH gives a model a name.

    \b
      mergeability compare base.safetensors cars.safetensors svhn.safetensors
      mergeability compare base/ a/ b/ owner/name --metric stable_rank --report report/
    """  # noqa: D301  (click reads the character \b)
    with sentences(computes=True):
        start_hashing(base, models, store_folder(store))
        from mergeability import verbs

        found = verbs.compare(
            base,
            named_models(models),
            metrics=list(metrics) or None,
            include=list(include) or None,
            exclude=list(exclude) or None,
            towers="both" if both_towers else None,
            store=store_folder(store),
            progress=progress(),
        )
        written = None if report is None else found.save(report)
        if as_json:
            click.echo(found.to_json())
        else:
            from mergeability.commands.tables import show_comparison

            show_comparison(found)
        say_report(written, as_json)


@cli.command(short_help="Predict whether models merge well, and by which method.")
@_common
@_evidence("")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="A merge method, instead of the default six."
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR", help="Write a report and tables there."
)
def predict(base: str, models: tuple[str, ...], as_json: bool, report: Path | None, **options: Any) -> None:
    """Predict whether models fine-tuned from BASE merge well, with which method, how reliably, and why.

    With --images for every model, each merge is probed on unlabelled images of each task (CLIP models). With
    --fitted, a predictor of an earlier analysis is used. With neither, the answer lists the evidence that is missing.

    \b
      mergeability predict base.safetensors cars.safetensors svhn.safetensors \\
        --images cars=photos/cars --classes cars=audi,bmw,fiat \\
        --images svhn=photos/svhn --classes svhn=0,1,2,3,4,5,6,7,8,9
    """  # noqa: D301  (click reads the character \b)
    with sentences(computes=True):
        start_hashing(base, models, store_folder(options["store"]))
        found = _predicted(base, models, **options)
        written = None if report is None else found.save(report)
        click.echo(found.to_json() if as_json else printable(str(found.verdict)))
        say_report(written, as_json)


@cli.command(short_help="Merge models into a folder that their library opens.")
@_common
@click.option(
    "--method",
    required=True,
    metavar="NAME",
    help="A merge method, or 'best': the one that predict recommends.",
)
@click.option(
    "--alpha", type=float, metavar="NUMBER", help="Scale of the merged update [default: the method's own]."
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the method, such as density=0.1.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="The folder [default: merged/METHOD/A+B]."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Number format [default: the base's].",
)
@click.option("--overwrite", is_flag=True, help="Replace a folder that exists.")
@click.option("--both-towers", is_flag=True, help="Merge the text tower of a CLIP as well.")
@_evidence("For --method best: ")
def merge(
    base: str,
    models: tuple[str, ...],
    method: str,
    alpha: float | None,
    options: tuple[str, ...],
    out: Path | None,
    dtype: str | None,
    overwrite: bool,
    both_towers: bool,
    as_json: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    store: str | None,
    **evidence: Any,
) -> None:
    """Use one method to merge models that were fine-tuned from BASE; write the merged model and its model card.

    If BASE is a transformers folder, the result is one too, with the base's tensor names, configuration and tokenizer.

    \b
      mergeability merge base.safetensors cars.safetensors svhn.safetensors --method tsv --out merged/
      mergeability merge base/ a/ b/ --method ties -o density=0.1 --alpha 0.5 --dtype bfloat16
    """  # noqa: D301  (click reads the character \b)
    with sentences(computes=True):
        start_hashing(base, models, store_folder(store))
        from mergeability import verbs
        from mergeability.pipeline.saving import merge_folder_name
        from mergeability.verbs.merging import check_out

        if out is not None:
            # Checked here, so that an error is raised before minutes of merging.
            check_out(out, overwrite)
        given = {**evidence, "include": include, "exclude": exclude, "store": store}
        method = _best(base, models, given) if method == "best" else method
        found = verbs.merge(
            base,
            named_models(models),
            method,
            alpha=alpha,
            options=option_values(options),
            dtype=dtype,
            include=list(include) or None,
            exclude=list(exclude) or None,
            towers="both" if both_towers else None,
            store=store_folder(store),
        )
        place = out or Path("merged") / method / merge_folder_name(found.task_vectors.tasks)
        found.save(place, overwrite=overwrite, progress=progress())
        if as_json:
            click.echo(found.to_json(place))
        else:
            click.echo(
                printable(
                    f"{' + '.join(found.task_vectors.tasks)}, merged by {method} at alpha = {found.alpha:g}: {place}"
                )
            )


def _script(name: str) -> Callable[..., None]:
    """Return the command that is the same as a script of a checkout, with Hydra's grammar."""

    def command(arguments: tuple[str, ...]) -> None:
        from importlib import import_module

        import hydra

        from mergeability.commands.run import run
        from mergeability.members import folder

        sys.argv = [f"mergeability {name}", *arguments]
        job = import_module(f"mergeability.commands.{name}").job
        main = hydra.main(version_base="1.3", config_path=str(folder("").resolve()), config_name=name)(job)
        if not {"--help", "-h"} & set(arguments):
            run(main)
            return
        # Hydra prints its help by itself; the examples in it are those of the scripts.
        told = io.StringIO()
        try:
            with contextlib.redirect_stdout(told):
                run(main)
        finally:
            click.echo(as_typed(told.getvalue()), nl=False)

    return command


for _name, _help in (
    ("train", "Fine-tune one model (Hydra's grammar: task=svhn reg.lambda=1)."),
    ("analyze", "Measure, merge, evaluate and predict a suite (suite=mini merge=ties)."),
):
    cli.command(_name, context_settings=_PASSED_ON, short_help=_help, add_help_option=False)(
        click.argument("arguments", nargs=-1, type=click.UNPROCESSED)(_script(_name))
    )


@cli.command(
    context_settings=_PASSED_ON, add_help_option=False, short_help="Show all runs below a folder on one page."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dashboard(arguments: tuple[str, ...]) -> None:
    """Show all finished runs in a folder on one page."""
    from mergeability.commands.dashboard import main

    sys.exit(main(list(arguments)))


@cli.command("list", short_help="List metrics, methods, penalties, predictors, tasks, models or suites.")
@click.argument("kind", metavar="KIND")
def listing(kind: str) -> None:
    """List all members of a KIND, one per line.

    Kinds: metrics, methods, penalties, predictors, protocols, tasks, models, suites.
    """
    with sentences():
        from mergeability.commands import catalogue

        click.echo(catalogue.listing(kind))


@cli.command(short_help="Define a metric, method, penalty, predictor, task, model or suite.")
@click.argument("name")
def show(name: str) -> None:
    """Show the definition, formula, source, options and cost of NAME."""
    with sentences():
        from mergeability.commands import catalogue

        click.echo(catalogue.text(catalogue.entry(name)))


def _predicted(base: str, models: Sequence[str], **options: Any) -> Any:
    from mergeability import verbs

    refused = [name for name in ("include", "exclude") if options.get(name)]
    if refused:
        raise UserError(f"predict does not support --{refused[0]}, because it uses whole encoders.")
    return verbs.predict(
        base,
        named_models(models),
        images=by_name("--images", options["images"]),
        classes=classes(options["classes"]),
        heads=by_name("--head", options["head"]),
        model=options["model"],
        fitted=options["fitted"],
        methods=list(options.get("methods") or ()) or None,
        device=options["device"],
        store=store_folder(options["store"]),
        progress=progress(),
        **({"templates": list(options["template"])} if options["template"] else {}),
    )


def _best(base: str, models: Sequence[str], given: dict[str, Any]) -> str:
    """Return the method that the verdict recommends.

    Raises:
        UserError: there is no evidence to recommend a method.
    """
    found = _predicted(base, models, **given)
    if not found.verdict.recommended:
        raise UserError(
            "--method best uses the method recommended by mergeability predict, but predict requires evidence. Give"
            " --images and --classes for every model, or give --fitted, or name a method (see mergeability list"
            " methods)."
        )
    click.echo(printable(found.verdict.answer), err=True)
    return str(found.verdict.recommended)
