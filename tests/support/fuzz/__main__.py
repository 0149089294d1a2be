"""Let the fuzzer look for an input that breaks a parser: `python -m tests.support.fuzz TARGET FOLDER [libFuzzer's options]`.

The samples of the target are written to FOLDER, where the fuzzer also keeps what reaches new code. The exit code is 0 if every
input was accepted or refused with one of our own errors, in the memory and the time that one may take.
"""

from __future__ import annotations

import hashlib
import resource
import sys
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["apparate"]):
    from tests.support.fuzz.target import Target
    from tests.support.fuzz.targets import TARGETS

    from apparate.errors import ApparateError

MEMORY_BYTES: Final = 768 << 20
"""What may be allocated beyond what the process has when it begins."""
INPUT_S: Final = 10
_PAGE_BYTES: Final = resource.getpagesize()


def main(name: str, folder: Path, options: list[str]) -> None:
    """Run until libFuzzer ends the process."""
    target = TARGETS[name]
    write_corpus(target, folder)
    words = folder.with_name(f"{folder.name}.words")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))

    def one(data: bytes) -> None:
        try:
            target.run(data)
        except ApparateError:
            return

    limit_memory()
    arguments = [sys.argv[0], str(folder), f"-dict={words}", f"-max_len={target.max_bytes}", f"-timeout={INPUT_S}"]
    atheris.Setup([*arguments, "-rss_limit_mb=0", "-len_control=0", *options], one)
    atheris.Fuzz()


def write_corpus(target: Target, folder: Path) -> None:
    """Write the samples of *target* below *folder*, each under its hash, as the fuzzer names its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def limit_memory() -> None:
    """Make an allocation beyond the limit fail, which is an error that is not ours."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
