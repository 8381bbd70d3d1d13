"""The exit status of the program, by what happened."""

from __future__ import annotations

__all__ = [
    "BACKEND",
    "CLOSED_OUTPUT",
    "DEFECT",
    "DEVICE",
    "FINDING",
    "INPUT",
    "INTERRUPTED",
    "MODEL",
    "NOTHING_RAN",
    "NOT_CONFORMANT",
    "OK",
    "OVER_LIMIT",
    "TABLE",
    "USAGE",
    "WORK",
    "of",
]

OK = 0
FINDING = 1
USAGE = 2
MODEL = 3
BACKEND = 4
INPUT = 5
DEVICE = 6
WORK = 7
NOTHING_RAN = 8
NOT_CONFORMANT = 9
OVER_LIMIT = 10
DEFECT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
CLOSED_OUTPUT = 141  # 128 + SIGPIPE, as shells report it

TABLE = {
    OK: "all is well",
    FINDING: "ran, and found something wrong: arms disagree, a test failed, an entry is damaged",
    USAGE: "wrong arguments or options",
    MODEL: "the model: not there, broken, unsupported, not trusted",
    BACKEND: "a backend, format, adapter or plugin: unknown, or not installed",
    INPUT: "the inputs do not fit the signature",
    DEVICE: "the device: not there, not what was asked for, out of memory",
    WORK: "predicting, converting, the cache or writing a file failed",
    NOTHING_RAN: "compare, select: no arm ran; conform: nothing could be tried",
    NOT_CONFORMANT: "select: no arm passed the gate",
    OVER_LIMIT: "select: no arm keeps the limits of latency or memory",
    DEFECT: "a defect of the program itself",
    INTERRUPTED: "interrupted with Ctrl-C",
    CLOSED_OUTPUT: "the reader of the output went away",
}


def of(error: Exception) -> int:
    """The status for an error of the bridge."""
    from bridge import errors

    by_class: dict[type[errors.BridgeError], int] = {
        errors.OptionError: USAGE,
        errors.ModelError: MODEL,
        errors.PluginError: BACKEND,
        errors.BackendNotFound: BACKEND,
        errors.BackendUnavailable: BACKEND,
        errors.InputError: INPUT,
        errors.DeviceError: DEVICE,
    }
    return next((code for kind, code in by_class.items() if isinstance(error, kind)), WORK)
