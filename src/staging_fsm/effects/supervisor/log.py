"""What the suite prints, kept on disk within a bound."""

from __future__ import annotations

import os

from .system import NEW_FILE, write_all

BLOCK_BYTES = 1024 * 1024


class BoundedLog:
    """Output on disk within a bound: the head is kept, and the newest part of the rest.

    The head goes to `output.log`. What follows goes to `output.tail`, which is set
    aside as `output.tail.old` each time it is full, so that between a quarter and
    half of the bound is always the newest output. `finish` joins the parts.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.path = os.path.join(folder, "output.log")
        self.tail = os.path.join(folder, "output.tail")
        self.head_left = limit // 2
        self.segment_limit = max(1, limit // 4)
        # Appended to: where the suite has cut its log short, it stays short.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(self.path, flags, 0o600)
        self.head_bytes = 0
        self.segment_fd: int | None = None
        self.segment_bytes = 0
        self.total = self.dropped = self.old_bytes = 0
        self.complete = True

    def write(self, block: bytes | memoryview) -> None:
        """Take one block of output; never raises, an unwritable log is only incomplete."""
        self.total += len(block)
        if not self.complete:
            return
        try:
            if self.head_left > 0:
                head = block[: self.head_left]
                write_all(self.fd, head)
                self.head_left -= len(head)
                self.head_bytes += len(head)
                block = block[len(head) :]
            # Only the newest two segments survive: what they push out need not be written.
            surplus = max(0, len(block) - 2 * self.segment_limit)
            self.dropped += surplus
            block = block[surplus:]
            while block:
                block = self._write_tail(block)
        except OSError:
            self.complete = False

    def _write_tail(self, block: bytes | memoryview) -> bytes | memoryview:
        fd = self.segment_fd
        if fd is None or self.segment_bytes >= self.segment_limit:
            fd = self._next_segment()
        part = block[: self.segment_limit - self.segment_bytes]
        write_all(fd, part)
        self.segment_bytes += len(part)
        return block[len(part) :]

    def _next_segment(self) -> int:
        if self.segment_fd is not None:
            os.close(self.segment_fd)
            if self.old_bytes:
                # To rename over it would make ext4 write out the new one: half of the speed.
                os.unlink(self.tail + ".old")
            self.dropped += self.old_bytes
            self.old_bytes = self.segment_bytes
            os.rename(self.tail, self.tail + ".old")
        self.segment_fd = os.open(self.tail, NEW_FILE | os.O_APPEND, 0o600)
        self.segment_bytes = 0
        return self.segment_fd

    def finish(self) -> None:
        """Join head and tail, with a line between them that says how much was dropped.

        A log that is longer or shorter than what was written is not what the suite printed.
        """
        try:
            note = b""
            if self.dropped:
                note = b"\n[staging_fsm: %d bytes of output dropped here]\n" % self.dropped
                write_all(self.fd, note)
            if self.segment_fd is not None:
                for path in (self.tail + ".old", self.tail):
                    self._append(path)
            os.fsync(self.fd)
            written = self.head_bytes + len(note) + self.old_bytes + self.segment_bytes
            if os.fstat(self.fd).st_size != written:
                self.complete = False
        except OSError:
            self.complete = False

    def facts(self) -> dict[str, object]:
        """Return what is known of the log, and what tells it from one put in its place."""
        found = os.fstat(self.fd)
        return {
            "log_bytes": self.total,
            "log_dropped_bytes": self.dropped,
            "log_complete": int(self.complete),
            "log_file": "%d:%d" % (found.st_ino, found.st_size),
        }

    def _append(self, path: str) -> None:
        if not os.path.exists(path):
            return
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        while block := os.read(source, BLOCK_BYTES):
            write_all(self.fd, block)
        os.close(source)
        os.unlink(path)
