"""A click group that imports its commands late and turns input errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from efat.cli.printing import keep_words, printable, say, words_of

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""

_USER_MISTAKES = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)


class InputProblem(click.ClickException):
    """Something the user gave cannot be used: one line, exit code 2."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group whose commands are imported only when they are run or completed.

    Args:
        commands: for each command, where it is (`module:attribute`) and its help in a line.

    Exit codes of all commands: 0 done; 1 the machine failed (a full disk, say); 2 the input cannot be used; 130 Ctrl-C.
    An exception that is none of these is a bug, and shows its traceback.
    """

    def __init__(self, *args: Any, commands: dict[str, tuple[str, str]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._places = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return sorted(self._places)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say which one may be meant."""
        name = args[0]
        if name not in self._places and not name.startswith("-") and not ctx.resilient_parsing:
            from simulator.errors import did_you_mean

            ctx.fail(f"No such command {name!r}{did_you_mean(name, self._places) or '.'}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self._places:
            return None
        module, _, attribute = self._places[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._places[name][1]) for name in self.list_commands(ctx)])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse arguments, and report what is wrong with them as users should see it."""
        with _cleaned():
            words = tuple(args)
            context = super().make_context(info_name, args, parent, **extra)
        keep_words(context, words)
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and report what goes wrong as users should see it."""
        from efat.command_lines import running

        token = running.set(words_of(ctx))
        try:
            with _cleaned():
                return self._invoke(ctx)
        finally:
            running.reset(token)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except _USER_MISTAKES as error:
            raise InputProblem(_describe(error)) from error
        except OSError as error:
            # Whoever reads what is printed may stop, as head does: click ends without a word.
            if error.errno in (None, errno.EPIPE):
                raise
            if error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL):
                raise InputProblem(_describe(error)) from error
            raise click.ClickException(_describe(error)) from error
        except Exception as error:
            failed = str(error) if _is_input_error(error) else _failure_of_network(error)
            if failed is None:
                raise
            raise InputProblem(failed) from error


@contextmanager
def resumable() -> Iterator[None]:
    """Work that is kept in a folder: whoever interrupts it, or lost a worker of it, is told how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted; run the same command to go on.", err=True)
        raise SystemExit(INTERRUPTED) from None
    except RuntimeError as error:
        from efat import WorkerDiedError

        if not isinstance(error, WorkerDiedError):
            raise
        raise click.ClickException(f"{error}; run the same command to go on") from None


@contextmanager
def _cleaned() -> Iterator[None]:
    """Messages of errors in one line each, without what a terminal would obey."""
    try:
        yield
    except click.ClickException as error:
        # Click never changes a message that is there; some have none, and make it when they are shown.
        if error.message:
            error.message = printable(" ".join(error.message.split()))  # type: ignore[misc]
        raise


def _describe(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _failure_of_network(error: Exception) -> str | None:
    """What a user's network raised while it ran, in a line; None if the error is none of its."""
    if "torch" not in sys.modules:  # no network has run
        return None
    from training.layers.user_code import user_failure

    return user_failure(error)


def _is_input_error(error: Exception) -> bool:
    """Whether it is one of the errors that the packages raise for what a user gave."""
    # Imported here, where the command that failed has long imported it.
    from simulator.errors import InputError

    return isinstance(error, InputError)
