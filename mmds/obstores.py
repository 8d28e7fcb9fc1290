"""obstore in this process, and its connections to object stores: one per bucket, made when it is first used.

obstore runs on threads that a forked process does not have, so what a parent has used hangs for ever in its child (obstore
0.12.1; the workers of a torch DataLoader are such children). Here, such a child loads the library a second time, from a copy
of its file: the dynamic loader takes another file for another library, whose threads are then those of the child.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from datetime import timedelta
from importlib.machinery import ExtensionFileLoader, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from mmds.errors import StorageError, missing, printable

WRITABLE = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "file": "", "memory": ""}  # with what the settings begin
SCHEMES = (*WRITABLE, "https", "http")

MAX_RETRIES = 5  # after 0.1, 0.2, ... s: a server that is gone is an error within some seconds
RETRY_TIMEOUT = timedelta(seconds=60)  # no retry begins later than that
CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=30)  # one request with its answer, mostly at most 8 MiB
WRITE_TIMEOUT = timedelta(seconds=300)  # at most 64 MiB, beside others, perhaps through a line of 10 Mbit/s
SETTINGS = ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes")

_is_inherited = False  # whether the loaded library is that of a parent
_library: Any = None
_stores: dict[tuple[str, str, bool], Any] = {}
_lock = threading.RLock()
_kept: list[Any] = []  # of a parent: to end it would wait for threads that are not there


def _after_fork() -> None:
    global _is_inherited, _library, _stores, _lock
    _is_inherited = "obstore" in sys.modules
    _kept.append((_library, _stores))
    _library, _stores, _lock = None, {}, threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def obstore() -> Any:
    """Return the library, so that it works in this process; `MissingDependencyError` where it is not installed."""
    global _library
    if _library is None:
        with _lock:
            try:
                if _is_inherited:
                    _load_again()
                library = importlib.import_module("obstore")
            except ModuleNotFoundError as error:
                if error.name != "obstore":
                    raise
                raise missing("obstore", "remote", "Object storage") from None
            importlib.import_module("obstore.exceptions")
            importlib.import_module("obstore.store")
            _library = library
    return _library


def _load_again() -> None:
    """Replace the library of a parent in `sys.modules` by another copy."""
    global _is_inherited
    package = sys.modules["obstore"]
    found = PathFinder.find_spec("_obstore", package.__path__)
    if found is None or found.origin is None:
        raise StorageError(
            f"no library in {printable(list(package.__path__))}; start processes by spawn instead of fork"
        )
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        _kept.append(sys.modules.pop(name))
    copy = os.memfd_create("obstore", os.MFD_CLOEXEC)
    try:
        with open(found.origin, "rb") as file:
            while os.sendfile(copy, file.fileno(), None, 2**30):
                pass
        place = f"/proc/self/fd/{copy}"
        name = "obstore._obstore"
        spec = spec_from_file_location(name, place, loader=ExtensionFileLoader(name, place))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    finally:
        os.close(copy)
    _is_inherited = False


def store_of(scheme: str, host: str, *, writing: bool = False) -> Any:
    """Return the connection to a bucket or server of this process; `StorageError` where none can be made."""
    key = (scheme, host, writing and scheme != "memory")  # a store in memory is its content
    with _lock:
        if key not in _stores:
            _stores[key] = _connect(scheme, host, WRITE_TIMEOUT if writing else READ_TIMEOUT)
        return _stores[key]


def _connect(scheme: str, host: str, timeout: timedelta) -> Any:
    shown = f"{printable(scheme)}://{printable(host)}"
    stores = obstore().store
    if scheme not in SCHEMES:
        raise StorageError(f"{shown}: unknown scheme; expected one of {', '.join(SCHEMES)}")
    if scheme == "memory":
        return stores.MemoryStore()
    if scheme == "file":
        if host not in ("", "localhost"):
            raise StorageError(f"{shown}: a file on another machine; expected file:///path")
        return stores.LocalStore(automatic_cleanup=True)  # of folders, which other stores do not have
    if not host:
        raise StorageError(f"{shown}: names no bucket or server")
    options: dict[str, Any] = {"timeout": timeout, "connect_timeout": CONNECT_TIMEOUT}
    retries = {"max_retries": MAX_RETRIES, "retry_timeout": RETRY_TIMEOUT}
    connect = stores.from_url
    if scheme in WRITABLE:  # options that are given make obstore forget those of the environment
        environment = {name: os.environ.get(WRITABLE[scheme] + name.upper()) for name in SETTINGS}
        options |= {name: value for name, value in environment.items() if value is not None}
    else:
        connect = stores.HTTPStore.from_url  # whoever's server it is
        options["allow_http"] = scheme == "http"
    try:
        return connect(f"{scheme}://{host}", client_options=options, retry_config=retries)
    except (obstore().exceptions.BaseError, ValueError) as error:
        raise StorageError(f"{shown}: {printable(str(error).partition(chr(10))[0], 300)}") from None
