r"""The file operations of a writer, as the kernel saw them.

`record` runs a writer under strace, which sees every system call, whoever makes it (a wrapper around Python's functions would
not see those of a library in C), and reads from ``-xx`` output each byte that was written. Stores through a memory map are no
system calls: a writer that maps a file shared and writable is refused. `losing.py` is what a crash may leave of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.sweep import run_child

PAGE = 4096
TRACED = (
    "openat,creat,write,pwrite64,writev,pwritev,pwritev2,read,readv,lseek,copy_file_range,sendfile,splice,fallocate,ftruncate,"
    "truncate,fsync,fdatasync,sync_file_range,msync,mmap,?link,linkat,?rename,?renameat,renameat2,?unlink,unlinkat,?mkdir,"
    "mkdirat,?rmdir,symlinkat,?symlink,close,dup,?dup2,dup3,fcntl"
)


@dataclass(eq=False)
class Node:
    """A file or a folder, whatever it is called."""

    is_folder: bool
    content: bytes = b""  # before the recording
    names: dict[str, Node] = field(default_factory=dict)  # of a folder, before the recording


@dataclass(frozen=True)
class Name:
    """Names that change together; `node` None: gone. Durable when `folder` is synced."""

    changes: tuple[tuple[Node, str, Node | None], ...]
    folder: Node


@dataclass(frozen=True)
class Size:
    """A file gets at least, or exactly, a length."""

    node: Node
    size: int
    is_exact: bool = False


@dataclass(frozen=True)
class Page:
    """Bytes of one write, in one page."""

    node: Node
    offset: int
    data: bytes


@dataclass(frozen=True)
class Sync:
    """All that was done to a file, or to the names in a folder, is durable."""

    node: Node


Operation = Name | Size | Page | Sync


@dataclass
class Recording:
    """What a writer did in `root`. `steps` are its system calls, each of one operation or several."""

    root: Node
    steps: list[list[Operation]]


def record(write: Callable[[Path], object], folder: Path) -> Recording:
    """Run a writer, and return what it did in `folder`."""
    root = _load(folder)
    outcome = run_child(lambda: write(folder), ["-s", str(2**24), "-xx", "-e", f"trace={TRACED}"])
    assert outcome.status == 0, outcome.trace
    parser = _Parser(folder, root)
    for line in outcome.calls:
        parser.read(line)
    return Recording(root, [step for step in parser.steps if step])


def _load(path: Path) -> Node:
    if path.is_dir():
        return Node(True, names={each.name: _load(each) for each in path.iterdir()})
    return Node(False, path.read_bytes())


@dataclass
class _Open:
    node: Node
    offset: int = 0
    appends: bool = False


_line = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)").match
_fd = re.compile(r"^(\d+)<").match


class _Parser:
    """Turns lines of strace into operations. Names and lengths are followed as they are while nothing stops."""

    def __init__(self, folder: Path, root: Node) -> None:
        self.folder, self.root = folder, root
        self.open: dict[int, _Open] = {}
        self.names: dict[Node, dict[str, Node]] = {}
        self.sizes: dict[Node, int] = {}
        self.steps: list[list[Operation]] = []
        self._enter(root)

    def _enter(self, node: Node) -> None:
        self.names[node] = dict(node.names)
        self.sizes[node] = len(node.content)
        for child in node.names.values():
            self._enter(child)

    def read(self, line: str) -> None:
        """Take one line."""
        if "<unfinished" in line or "resumed>" in line:
            raise ValueError(f"a recording of one thread only: {line[:200]}")
        found = _line(line)
        if found is None or found[3] == "-1":
            return
        handle = getattr(self, f"_{found[1]}", None)
        if handle is None:
            if any(int(fd[1]) in self.open for fd in map(_fd, found[2].split(", ")) if fd):
                raise ValueError(f"not known to the recorder: {line[:200]}")
            return
        self.steps.append(list(handle(found[2].split(", "), int(found[3]))))

    # Where something is

    def _path(self, text: str, at: str = "") -> tuple[Node, str] | None:
        """Return the folder and the name of a path, None for one outside of the folder."""
        path = Path(_text(text))
        if not path.is_absolute() and (fd := _fd(at)) and int(fd[1]) in self.open:
            return self.open[int(fd[1])].node, str(path)
        if self.folder not in path.parents:
            return None
        node = self.root
        for name in path.relative_to(self.folder).parts[:-1]:
            node = self.names[node][name]
        return node, path.name

    def _file(self, text: str) -> _Open | None:
        found = _fd(text)
        return self.open.get(int(found[1])) if found else None

    # System calls

    def _openat(self, given: list[str], result: int) -> Iterator[Operation]:
        self.open.pop(result, None)
        place = self._path(given[1], given[0])
        if place is None:
            if Path(_text(given[1])) == self.folder and "O_TMPFILE" not in given[2]:
                self.open[result] = _Open(self.root)
            return
        if "O_TMPFILE" in given[2]:
            return  # has no name, ever
        folder, name = place
        node = self.names[folder].get(name)
        if node is None:
            node = Node(False)
            self._enter(node)
            yield self._named((folder, name, node), folder=folder)
        elif "O_TRUNC" in given[2]:
            self.sizes[node] = 0
            yield Size(node, 0, is_exact=True)
        self.open[result] = _Open(node, appends="O_APPEND" in given[2])

    def _close(self, given: list[str], _: int) -> Iterator[Operation]:
        found = _fd(given[0])
        if found:
            self.open.pop(int(found[1]), None)
        return iter(())

    def _fcntl(self, given: list[str], result: int) -> Iterator[Operation]:
        file = self._file(given[0])
        if file is not None and given[1].startswith("F_DUPFD"):
            self.open[result] = file
        return iter(())

    def _write(self, given: list[str], result: int) -> Iterator[Operation]:
        file = self._file(given[0])
        if file is not None:
            offset = self.sizes[file.node] if file.appends else file.offset
            file.offset = offset + result
            yield from self._written(file.node, offset, _bytes(given[1])[:result])

    def _pwrite64(self, given: list[str], result: int) -> Iterator[Operation]:
        file = self._file(given[0])
        if file is not None:
            yield from self._written(file.node, int(given[3]), _bytes(given[1])[:result])

    def _written(self, node: Node, offset: int, data: bytes) -> Iterator[Operation]:
        end = offset + len(data)
        if end > self.sizes[node]:
            self.sizes[node] = end
            yield Size(node, end)
        start = offset
        while start < end:
            stop = min(end, (start // PAGE + 1) * PAGE)
            yield Page(node, start, data[start - offset : stop - offset])
            start = stop

    def _read(self, given: list[str], result: int) -> Iterator[Operation]:
        file = self._file(given[0])
        if file is not None:
            file.offset += result
        return iter(())

    def _lseek(self, given: list[str], result: int) -> Iterator[Operation]:
        file = self._file(given[0])
        if file is not None:
            file.offset = result
        return iter(())

    def _ftruncate(self, given: list[str], _: int) -> Iterator[Operation]:
        file = self._file(given[0])
        if file is not None:
            self.sizes[file.node] = int(given[1])
            yield Size(file.node, int(given[1]), is_exact=True)

    def _mmap(self, given: list[str], _: int) -> Iterator[Operation]:
        if "PROT_WRITE" in given[2] and "MAP_SHARED" in given[3] and self._file(given[4]):
            raise ValueError(f"writes through a memory map are not recorded: {given}")
        return iter(())

    def _fsync(self, given: list[str], _: int) -> Iterator[Operation]:
        file = self._file(given[0])
        if file is not None:
            yield Sync(file.node)

    _fdatasync = _fsync

    def _named(self, *changes: tuple[Node, str, Node | None], folder: Node) -> Name:
        for parent, name, node in changes:
            if node is None:
                del self.names[parent][name]
            else:
                self.names[parent][name] = node
        return Name(changes, folder)

    def _linkat(self, given: list[str], _: int) -> Iterator[Operation]:
        yield from self._link([given[1], given[3]], 0)

    def _link(self, given: list[str], _: int) -> Iterator[Operation]:
        source, target = self._path(given[0]), self._path(given[1])
        assert source and target
        yield self._named((*target, self.names[source[0]][source[1]]), folder=target[0])

    def _rename(self, given: list[str], _: int) -> Iterator[Operation]:
        yield from self._renameat2(["", given[0], "", given[1], "0"], 0)

    def _renameat(self, given: list[str], _: int) -> Iterator[Operation]:
        yield from self._renameat2([*given, "0"], 0)

    def _renameat2(self, given: list[str], _: int) -> Iterator[Operation]:
        source, target = self._path(given[1], given[0]), self._path(given[3], given[2])
        assert source and target
        moved, replaced = self.names[source[0]][source[1]], self.names[target[0]].get(target[1])
        left = replaced if "EXCHANGE" in given[4] else None
        yield self._named((*source, left), (*target, moved), folder=target[0])

    def _unlinkat(self, given: list[str], _: int) -> Iterator[Operation]:
        place = self._path(given[1], given[0])
        if place:
            yield self._named((*place, None), folder=place[0])

    def _unlink(self, given: list[str], _: int) -> Iterator[Operation]:
        yield from self._unlinkat(["", given[0]], 0)

    _rmdir = _unlink

    def _mkdirat(self, given: list[str], _: int) -> Iterator[Operation]:
        place = self._path(given[1], given[0])
        if place:
            node = Node(True)
            self._enter(node)
            yield self._named((*place, node), folder=place[0])

    def _mkdir(self, given: list[str], _: int) -> Iterator[Operation]:
        yield from self._mkdirat(["", given[0]], 0)


def _bytes(text: str) -> bytes:
    assert text.startswith('"') and text.endswith('"'), f"cut: {text[-20:]}"
    return bytes.fromhex(text[1:-1].replace("\\x", ""))


def _text(text: str) -> str:
    return _bytes(text).decode("utf-8", "surrogateescape")
