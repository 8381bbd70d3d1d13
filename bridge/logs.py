"""Loggers of the bridge, and the way of native output into them.

Runtimes print from C++ to file descriptors 1 and 2, past ``sys.stdout`` and past
``logging``. ``native_output`` catches that while a runtime is imported or loads a model,
so that the output of the program using the bridge stays its own.

Nothing here configures logging: without handlers the lines go nowhere, with
``logging.basicConfig(level="INFO")`` they are seen.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

__all__ = ["NativeOutput", "logger", "native_output", "outputs_are_kept"]

_OUTPUTS = (1, 2)
_KEPT_LINES = 1000
_LINE_BYTES = 65536

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LEVEL = re.compile(
    r"\[?(?P<glog>[VDIWEF])\d{4} "  # glog, absl; in brackets from c10 (torch)
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.\d]*: (?P<tensorflow>[IWEF]) "
    r"|.{0,80}?\[(?P<onnxruntime>[VIWEF]):onnxruntime"
    r"|(?:\[[^\]]{0,40}\] ?){0,2}\[(?P<tensorrt>[VIWEF])\] "
    r"|\[? ?(?P<word>(?i:TRACE|VERBOSE|DEBUG|INFO|WARN|ERROR|FATAL|CRITICAL))(?:ING|ing)? ?[\]:]"
    r"|\S+:\d+: \w*(?P<python>Warning): "
)
_LEVELS = {
    "T": logging.DEBUG,
    "V": logging.DEBUG,
    "D": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
    "C": logging.CRITICAL,
}

# A library must not print: without this, logging's last resort writes warnings to stderr.
logging.getLogger("bridge").addHandler(logging.NullHandler())


def logger(backend: str) -> logging.Logger:
    """The logger ``bridge.<backend>``."""
    return logging.getLogger(f"bridge.{backend}")


def outputs_are_kept() -> None:
    """Says that both outputs of this process are one file, readable and kept by somebody.

    ``native_output`` redirects nothing from now on, so that what a runtime prints just
    before it ends the process is not lost; blocks still know their lines.
    """
    global _is_kept  # noqa: PLW0603 - the descriptors are global as well
    _is_kept = True


_is_kept = False


class NativeOutput:
    """What one ``native_output`` block has caught; made by it."""

    def __init__(self, capture: _Capture, target: logging.Logger) -> None:
        self._capture = capture
        self.target = target
        self._start = capture.size()
        self._ended: tuple[str, ...] | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The last 1000 lines since the block began, without colours and blank lines.

        Inside the block: up to now, to be attached to an error that is about to be
        raised; afterwards: up to the block's end.
        """
        if self._ended is not None:
            return self._ended
        _flush()
        return self._read()

    def end(self) -> None:
        """Fix ``lines`` at what they are now; the block calls it."""
        self._ended = self._read()

    def _read(self) -> tuple[str, ...]:
        return tuple(line for _, line in self._capture.lines(self._start))[-_KEPT_LINES:]


class _Capture:
    """One redirection of both outputs to one file, shared by all blocks that overlap."""

    def __init__(self) -> None:
        self.blocks: list[NativeOutput] = []
        self._owners: list[tuple[int, logging.Logger]] = []
        # Taken at number 3 or above: where 1 or 2 is closed, a new file would get that
        # number, and be overwritten by the very redirection it is meant for.
        kept = _copy(_OUTPUTS[-1]) if _is_kept else None
        self._file = _scratch() if kept is None else kept
        # Linux does not lock the position of a memory file: without this, threads that
        # write at the same time overwrite each other.
        fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_APPEND)
        self._saved: dict[int, int | None] = {}
        if kept is not None:
            return
        try:
            for output in _OUTPUTS:
                self._saved[output] = _copy(output)
            for output in _OUTPUTS:
                os.dup2(self._file, output)
        except BaseException:
            self.restore()
            self.close()
            raise

    def restore(self) -> None:
        for output, copy in self._saved.items():
            if copy is None:
                with contextlib.suppress(OSError):  # closed before, and closed again meanwhile
                    os.close(output)
            else:
                os.dup2(copy, output)
                os.close(copy)
        self._saved = {}

    def close(self) -> None:
        os.close(self._file)

    def size(self) -> int:
        return os.fstat(self._file).st_size

    def join(self, target: logging.Logger) -> NativeOutput:
        block = NativeOutput(self, target)
        self.blocks.append(block)
        self._owners.append((self.size(), target))
        return block

    def leave(self, block: NativeOutput) -> None:
        self.blocks.remove(block)
        if self.blocks:
            self._owners.append((self.size(), self.blocks[-1].target))

    def lines(self, start: int) -> Iterator[tuple[int, str]]:
        """The lines from an offset on, each with the offset at which it begins."""
        pieces = []
        at = start
        while piece := os.pread(self._file, 1 << 20, at):
            pieces.append(piece)
            at += len(piece)
        for raw in b"".join(pieces).split(b"\n"):
            for cut in range(0, len(raw), _LINE_BYTES):
                text = raw[cut : cut + _LINE_BYTES].decode("utf-8", "replace")
                text = _COLOUR.sub("", text).replace("\0", "").rstrip()
                if text:
                    yield start, text
            start += len(raw) + 1

    def forward(self) -> None:
        """Log every line, to the block that was the latest to begin when it was written."""
        starts = [offset for offset, _ in self._owners]
        for offset, line in self.lines(starts[0]):
            _, target = self._owners[max(bisect.bisect_right(starts, offset) - 1, 0)]
            target.log(_level(line), "%s", line)


_lock = threading.Lock()
_current: _Capture | None = None


@contextlib.contextmanager
def native_output(target: logging.Logger) -> Iterator[NativeOutput]:
    """Catch what is written to file descriptors 1 and 2, and log it after the block.

    Descriptors belong to the whole process, so a block sees more than its own thread:

    - Text that other Python threads print meanwhile goes to ``target`` too.
    - Blocks may nest and overlap between threads: the first redirects, the last to end
      restores, and only then is everything logged. A line goes to the logger of the
      latest block to begin before it; ``lines`` of an overlapping block holds them all.
    - A process started meanwhile with inherited outputs writes into the capture, and
      what it writes after the block is lost. A forked child has its outputs back.
    - If the process dies inside the block, what was caught dies with it.

    Lines are logged at the level that their own prefix names (glog, TensorFlow,
    ONNX Runtime, OpenVINO, TensorRT and Python warning styles), else at INFO. Output is
    kept in memory (Linux) or an unnamed temporary file until then; it may be of any length.

    Args:
        target: The logger that gets the lines, usually ``logger(backend)``.

    Yields:
        The block's output; its ``lines`` can be read inside the block and after it.

    Raises:
        OSError: The process has no file descriptors left.
    """
    global _current  # noqa: PLW0603 - the descriptors are global as well
    _flush()
    with _lock:
        if _current is None:
            _current = _Capture()
        capture = _current
        block = capture.join(target)
    try:
        yield block
    finally:
        try:
            _flush()
        finally:  # whatever interrupts a flush, the outputs come back
            _leave(capture, block)


def _leave(capture: _Capture, block: NativeOutput) -> None:
    global _current  # noqa: PLW0603
    with _lock:
        try:
            block.end()
        finally:
            capture.leave(block)
            is_last = not capture.blocks and _current is capture
            if is_last:
                _current = None
                capture.restore()
    if is_last:
        # Not before the outputs are back: a handler may write to them.
        try:
            capture.forward()
        finally:
            capture.close()


def _after_fork() -> None:
    """Give a forked child the real outputs; the parent goes on, and logs what was caught."""
    global _current, _lock  # noqa: PLW0603
    _lock = threading.Lock()  # another thread may have held it at the fork
    if _current is not None:
        _current.restore()
        _current = None


os.register_at_fork(after_in_child=_after_fork)


def _level(line: str) -> int:
    match = _LEVEL.match(line)
    if match is None or match.lastgroup is None:
        return logging.INFO
    return _LEVELS[match[match.lastgroup][0].upper()]


def _flush() -> None:
    """Empty the buffers of Python and of the C library, so that text lands where it belongs."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # closed: it holds nothing to save
                stream.flush()
    import ctypes

    libc = ctypes.CDLL(None)
    for names in (("stdout", "__stdoutp"), ("stderr", "__stderrp")):
        for name in names:  # the second is macOS's
            with contextlib.suppress(ValueError):
                # Not fflush(NULL): that waits for a thread blocked in reading C's stdin.
                libc.fflush(ctypes.c_void_p.in_dll(libc, name))


def _scratch() -> int:
    """An unnamed file for the output; in memory where possible, so that a full disk is no bar."""
    create = getattr(os, "memfd_create", None)  # Linux
    if create is not None:
        low = create("bridge-native-output")
        try:
            return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
        finally:
            os.close(low)
    with tempfile.TemporaryFile() as file:
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)


def _copy(output: int) -> int | None:
    """A copy of a descriptor, numbered 3 or above; None if it is closed."""
    try:
        return fcntl.fcntl(output, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        if error.errno == errno.EBADF:
            return None
        raise
