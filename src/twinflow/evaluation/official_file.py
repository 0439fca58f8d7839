"""A benchmark's input as its authors publish it: no part of this package, fetched once and checked."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twinflow.errors import TwinflowError

TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """One file of known content, in the cache folder or at one of ``urls``; the hash decides, not the address."""

    benchmark: str  # its folder in the cache
    name: str
    urls: tuple[str, ...]  # tried in order
    sha256: str  # of the file in the cache
    option: str  # of the command line, that names a local copy: "--with geneval.prompts=FILE"
    unpack: Callable[[bytes], bytes] = (
        bytes  # what is fetched -> the file; ValueError if it is something else
    )

    @property
    def cached(self) -> Path:
        """Where it lies once it was fetched; a copy that is put there by hand serves as well."""
        return cache_folder() / self.benchmark / self.name

    def path(self) -> Path:
        """The file on this machine. It is fetched if it is not in the cache, or something else is under its name.

        Raises TwinflowError, naming file, address and option, if it can't be had.
        """
        if self.cached.is_file() and self._is_it(self.cached.read_bytes()):
            return self.cached
        failures = []
        for url in self.urls:
            try:
                content = self.unpack(_fetch(url))
            except (OSError, ValueError, EOFError, zlib.error, http.client.HTTPException) as error:
                failures.append(f"{url}: {error}")
                continue
            if self._is_it(content):
                self._keep(content)
                return self.cached
            failures.append(f"{url}: its content is not the official file's (sha256 {self.sha256[:12]}…)")
        state = "is not the official one" if self.cached.is_file() else "is not there"
        raise TwinflowError(
            f"{self.cached} {state}, and can't be fetched: {'; '.join(failures)}. Copy it there from a machine with a "
            f"network, or name another copy: {self.option}"
        )

    def _is_it(self, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self.sha256

    def _keep(self, content: bytes) -> None:
        """Whole or not at all, also where several processes fetch at once."""
        hidden = self.cached.with_name(f".{self.name}.{os.getpid()}")
        try:
            self.cached.parent.mkdir(parents=True, exist_ok=True)
            hidden.write_bytes(content)
            os.replace(hidden, self.cached)
        except OSError as error:
            raise TwinflowError(
                f"{self.cached} can't be written: {error}. Set TWINFLOW_CACHE to a folder that can, or name a copy: "
                f"{self.option}"
            ) from error


def cache_folder() -> Path:
    """``$TWINFLOW_CACHE``, or ``~/.cache/twinflow``."""
    chosen = os.environ.get("TWINFLOW_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "twinflow"


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        return answer.read()
