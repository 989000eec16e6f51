"""Named checks: each prints `ok name` or `FAIL name: why`; the last line counts them."""

import sys
import time
import traceback


class Failed(Exception):
    """What should be true is not."""


def same(what, got, wanted):
    if got != wanted:
        raise Failed(f"{what} is {got!r}, not {wanted!r}")


def true(what, holds):
    if not holds:
        raise Failed(f"not so: {what}")


def raises(kind, call):
    """The exception that `call` must raise, of exactly this kind."""
    try:
        answer = call()
    except kind as error:
        if type(error) is not kind:
            raise Failed(f"{type(error).__name__} raised, not {kind.__name__}") from error
        return error
    raise Failed(f"no {kind.__name__}, but {str(answer)[:200]}")


def until(what, seconds, see):
    """Asks again and again, at most `seconds` long, until `see` says something true. Its answer, and how
    long it took."""
    began = time.monotonic()
    while True:
        seen = see()
        taken = time.monotonic() - began
        if seen:
            return seen, taken
        if taken > seconds:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.001)


class Checks:
    """Runs checks one after the other; one that fails does not keep the next from running."""

    def __init__(self):
        self.passed = self.failed = 0
        self.began = time.monotonic()

    def check(self, name, call, *given):
        began = time.monotonic()
        try:
            note = call(*given)
        except Failed as error:
            self.fail(name, str(error))
        except Exception as error:  # One broken check must not hide the others.
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.fail(name, f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})")
        else:
            self.passed += 1
            note = f": {note}" if note else ""
            print(f"ok {name}{note} ({time.monotonic() - began:.2f} s)", flush=True)

    def fail(self, name, why):
        self.failed += 1
        print(f"FAIL {name}: {why}", flush=True)

    def end(self, of):
        """Prints the sum and ends the process, with 1 if a check failed."""
        print(f"{of}: {time.monotonic() - self.began:.1f} s")
        print(f"clients: {self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed or not self.passed else 0)
