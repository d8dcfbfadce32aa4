"""The memory that this machine has left, within the limits of a container."""

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def free_memory(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int | None:
    """Return the bytes that processes can still take, None where this system does not tell.

    The least of what is there and of what each control group that this process is in allows; pages
    of files, which the system gives back, count as free.
    """
    left = _available(proc / "meminfo")
    found = [] if left is None else [left]
    for folder in _groups(proc, cgroups):
        most, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        cached = _field(folder / "memory.stat", "file", "shmem")
        if most is None:  # version 1
            most = _number(folder / "memory.limit_in_bytes")
            used = _number(folder / "memory.usage_in_bytes")
            cached = _field(folder / "memory.stat", "total_cache", "total_shmem")
        if most is not None and used is not None:
            found.append(max(0, most - used + cached))
    return min(found, default=None)


def _groups(proc: Path, cgroups: Path) -> list[Path]:
    """Return the folders of the control groups that limit this process's memory."""
    places = []
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0":
            root = cgroups
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
        else:
            continue
        inner = root / path.lstrip("/")
        places += [inner, *(above for above in inner.parents if above.is_relative_to(root))]
    return places


def _available(path: Path) -> int | None:
    for line in _lines(path):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _field(path: Path, name: str, less: str) -> int:
    """Return a field of a group's statistics less another, which it includes."""
    fields = dict(line.split()[:2] for line in _lines(path) if len(line.split()) >= 2)
    return int(fields.get(name, 0)) - int(fields.get(less, 0))


def _number(path: Path) -> int | None:
    """Return the number in a file, None for "max", or where there is none."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
