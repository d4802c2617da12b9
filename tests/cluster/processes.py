"""Finding, waiting for and killing processes that a test itself started."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def descendants(pid: int, name: str = "") -> list[int]:
    """Living processes below `pid` whose command line contains `name`."""
    parent: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if stat[0] != "Z":
                parent[int(entry.name)] = int(stat[1])
    found, frontier = [], [pid]
    while frontier:
        children = [child for child, above in parent.items() if above in frontier]
        found += children
        frontier = children
    return [child for child in found if name in command_line(child)]


def command_line(pid: int) -> str:
    """How a process was started; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_for(what: Callable[[], Any], seconds: float, message: str) -> Any:
    """Poll until `what()` is truthy and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := what():
            return result
        time.sleep(0.02)
    raise TimeoutError(message)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def zoo_bytes(path: Path) -> dict[str, bytes]:
    """All data files of a zoo; not what a clock says (the log) or what is derived (card, results)."""
    folders = ("checkpoints", "runs", "sums")
    files = [file for folder in folders for file in (path / folder).rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in [*files, path / "zoo.json"]}


def listening_addresses(pids: list[int]) -> set[str]:
    """Local addresses, as /proc writes them, of the TCP sockets that these processes listen on."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: LISTEN
                found.add(fields[1].partition(":")[0])
    return found
