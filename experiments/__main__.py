"""``python -m experiments NAME [--flags]`` runs an experiment; ``python -m experiments list`` names them all.

The exit status is 0 for a run that is complete, 2 for a wrong flag or missing data, 130 after Ctrl-C, 141 if the reader
of the output has gone (as after ``| head``), and 1 for any other failure.
"""

import importlib
import os
import sys
from typing import Any

from experiments.run import BadRequest, Diverged, parse
from mgu_jax import NotFinite

# Name -> the module that holds its Config and its main.
NAMES = {
    "digits": "tasks.digits",
    "mnist-rows": "tasks.mnist_rows",
    "mnist-pixels": "tasks.mnist_pixels",
    "adding": "tasks.adding",
    "copy": "tasks.copying",
    "tune": "tasks.tune",
    "words": "tasks.words",
    "chars": "tasks.chars",
    "imdb": "tasks.imdb",
    "vowels": "tasks.vowels",
    "speech": "tasks.speech",
    "speakers": "tasks.speakers",
    "notebook": "tasks.notebook",
    "gradients": "tasks.gradients",
    "features": "speed.features",
    "benchmark": "speed.benchmark",
    "benchmark-gpu": "speed.gpu",
    "sweep": "tasks.sweep",
    "memory": "tasks.memory",
    "rl": "tasks.rl",
    "rl-tuning": "tasks.rl_tuning",
    "rl-speed": "speed.agents",
    "identification": "tasks.identification",
    "subjects": "tasks.subjects",
    "jacobians": "speed.jacobians",
    "parallel": "speed.parallel",
    "earlier": "speed.earlier",
    "training": "speed.overhead",
    "data": "datasets.data",
    "report": "report.page",
}


def _module(name: str) -> Any:
    return importlib.import_module(f"experiments.{NAMES[name]}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # raises here, where it is handled, what it would raise when Python ends
            sys.stderr.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # Python will try again to write the rest
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141


def _run(arguments: list[str] | None) -> int:
    name, *flags = (sys.argv[1:] if arguments is None else arguments) or ["list"]
    try:
        if name in ("list", "--help", "-h"):
            if flags:
                raise BadRequest(f"{name} must stand alone; got {' '.join(flags)}.")
            print("python -m experiments NAME [--flags], where NAME is one of:\n")
            for known in NAMES:
                print(f"  {known:15}{(_module(known).__doc__ or '').splitlines()[0]}")
            print("\npython -m experiments NAME --help shows the flags of one.")
            return 0
        if name not in NAMES:
            print(f"error: NAME must be one of {', '.join(NAMES)} or list; got {name!r}.", file=sys.stderr)
            return 2
        module = _module(name)
        module.main(parse(module.Config, name, flags, module.__doc__))
    except BadRequest as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        for note in getattr(stop, "__notes__", ()):  # that a checkpoint could not be saved
            print(f"error: {note}", file=sys.stderr)
        print("stopped; the same command with --resume continues from the last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ImportError, NotFinite, Diverged, OSError) as error:  # a missing extra, a failed run, a full disk
        for text in (error, *getattr(error, "__notes__", ())):
            print(f"error: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
