"""Make the object for a kernel: from the cache, else by the compile child. Nothing here imports bcc.

An object fits one kernel build (BTF ids are baked in), one text of the sources and one accounting hierarchy; these three are
its key, and the compiler that made it stands inside. So a warm start reads one file and needs no compiler.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

from nsagent.errors import AccessError, LoadError, UnsupportedError
from nsagent.kernel import abi

log = logging.getLogger(__name__)

BTF = "/sys/kernel/btf/vmlinux"
_NO_BCC = 3  # compile.NO_BCC, without importing that module here
_NOBODY = 65534
_BCC_HINT = (
    "apt install python3-bpfcc (PyPI's `bcc` is an unrelated lattice library), "
    "or set NSAGENT_BCC_PYTHON to an interpreter that has it"
)
_HERE = os.path.dirname(os.path.abspath(__file__))


def source_dir() -> str:
    """Return the directory of the BPF sources: inside the installed package, or beside it in a checkout."""
    package = os.path.dirname(_HERE)
    for path in (os.path.join(package, "bpf"), os.path.join(os.path.dirname(package), "bpf")):
        if os.path.isfile(os.path.join(path, "nsagent.h")):
            return path
    raise LoadError("the BPF sources (bpf/nsagent.h) are not installed", hint="reinstall nsagent")


def read_sources() -> dict[str, str]:
    """Return the text of each bpf/*.c and *.h by file name."""
    paths = sorted(glob.glob(os.path.join(glob.escape(source_dir()), "*.[ch]")))
    sources = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            sources[os.path.basename(path)] = file.read()
    return sources


def source_key(sources: dict[str, str], subsystem: str | None) -> str:
    """Hash all that the compiled instructions depend on but the kernel."""
    digest = hashlib.sha256(repr((sorted(sources.items()), subsystem, os.uname().machine)).encode())
    for name in ("compile.py", "headers.py", "btf.py"):
        with open(os.path.join(_HERE, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def interpreters() -> list[str]:
    """Interpreters that may have bcc, in the order they are tried."""
    candidates = [os.environ.get("NSAGENT_BCC_PYTHON", ""), "/usr/bin/python3", sys.executable]
    return list(dict.fromkeys(path for path in candidates if path and os.access(path, os.X_OK)))


def compile_object(
    build_id: str, subsystem: str | None, *, btf: str = BTF, deadline: float = 180.0, log_dir: str = ""
) -> dict[str, Any]:
    """Compile the programs in a child and return the object, without maps.

    Raises:
        UnsupportedError: no interpreter has bcc, or the kernel has no BTF.
        LoadError: the compiler refused; its text is in `log`, and in a file under `log_dir`.
    """
    if not os.path.exists(btf):
        raise UnsupportedError("bpf", f"{btf} does not exist", hint="the kernel needs CONFIG_DEBUG_INFO_BTF=y")
    sources = read_sources()
    request = json.dumps(
        {
            "root": os.path.dirname(os.path.dirname(_HERE)),
            "btf": btf,
            "sources": sources,
            "machine": os.uname().machine,
            "subsystem": subsystem,
            "build_id": build_id,
            "source": source_key(sources, subsystem),
            "uid": _NOBODY,
        }
    )
    for python in interpreters():
        log.info("compiling python=%s", python)
        try:
            # Its temporary files are below ours: a child that is killed removes none.
            with tempfile.TemporaryDirectory(prefix="nsagent-", ignore_cleanup_errors=True) as scratch:
                os.chmod(scratch, 0o1777)
                done = subprocess.run(
                    [python, "-I", os.path.join(_HERE, "compile.py")],
                    input=request, capture_output=True, text=True, timeout=deadline, check=False,
                    env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "TMPDIR": scratch},
                )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            text = (error.stderr or b"").decode("utf-8", "replace")
            raise _compile_error(text, log_dir, f"it took longer than {deadline:g} s and was stopped") from None
        except OSError as error:
            log.warning("cannot run %s: %s", python, error.strerror)
            continue
        if done.returncode == 0:
            document: dict[str, Any] = json.loads(done.stdout)
            return document
        if done.returncode < 0:
            raise _compile_error(done.stderr, log_dir, f"the compiler was ended by {_signal_name(-done.returncode)}")
        if done.returncode != _NO_BCC:
            raise _compile_error(done.stderr, log_dir)
    raise UnsupportedError("bpf", f"no module named bcc for {' or '.join(interpreters())}", hint=_BCC_HINT)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _compile_error(text: str, log_dir: str, cause: str = "") -> LoadError:
    """One cause: what is known, else the first error in the compiler's text, else the child's last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    cause = cause or (errors or lines[-1:] or ["the compiler said nothing"])[0].strip()
    path = keep_log(log_dir, "compile.log", text)
    hint = f"the compiler's text is in {path}" if path else "please report it with the log"
    return LoadError(f"cannot compile the BPF programs: {cause}", log=text, hint=hint)


def keep_log(log_dir: str, name: str, text: str) -> str:
    """Write the compiler's or the verifier's text to a file of `log_dir`; return its path, empty where there is none."""
    if not log_dir:
        return ""
    path = os.path.join(log_dir, name)
    try:
        os.makedirs(log_dir, mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        log.warning("event=log_not_kept path=%s reason=%s", path, error.strerror)
        return ""
    return path


def make_object(
    build_id: str, subsystem: str | None, *, rows: int, ring_bytes: int, btf: str = BTF, log_dir: str = ""
) -> dict[str, Any]:
    """Compile the programs and add the maps: a whole object. Raises as `compile_object`."""
    document = compile_object(build_id, subsystem, btf=btf, log_dir=log_dir)
    return document | {"abi": abi.ABI_VERSION, "maps": abi.map_specs(rows, ring_bytes)}


def cached_path(cache_dir: str, build_id: str, key: str) -> str:
    """Where the object for this kernel and these sources lies."""
    return os.path.join(cache_dir, f"{build_id[:40] or 'unknown'}-{key[:16]}.json")


def store(path: str, document: dict[str, Any], *, must: bool = False) -> bytes:
    """Write an object atomically, readable by its owner alone, and return its text. A failure to write is a warning.

    Raises:
        AccessError: it cannot be written, and `must`.
    """
    directory, text = os.path.dirname(path), json.dumps(document).encode()
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".object-", delete=False) as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(out.name, path)
    except OSError as error:
        if must:
            raise AccessError(f"cannot write {path}: {error.strerror}", hint="name a directory of your own") from error
        log.warning("object not cached path=%s error=%s", path, error.strerror)
    return text
