"""Folders that look like the file system of a Jetson, as far as `roboalign.sdk.board` reads it."""

from pathlib import Path

__all__ = ["AGX_ORIN", "NANO", "THOR", "write_board"]

AGX_ORIN = "NVIDIA Jetson AGX Orin Developer Kit"
NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
THOR = "NVIDIA Jetson AGX Thor Developer Kit"


def write_board(
    root: Path,
    *,
    model: str = AGX_ORIN,
    release: str | None = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    memory_gib: float = 61.4,
    tensorrt: str | None = "10.3.0",
    power_mode: str | None = "MAXN",
) -> Path:
    """Writes what a board's kernel and JetPack leave below `root`; returns `root`."""
    files = {
        "proc/device-tree/model": f"{model}\0",
        "proc/meminfo": (
            f"MemTotal:       {int(memory_gib * 2**20)} kB\nMemFree:        1000 kB\n"
            f"MemAvailable:   {int(0.8 * memory_gib * 2**20)} kB\n"
        ),
    }
    if power_mode is not None:
        files["var/lib/nvpmodel/status"] = "pmode:0002"
        files["etc/nvpmodel.conf"] = (
            f"< POWER_MODEL ID=1 NAME=MODE_15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME={power_mode} >\n"
        )
    if release is not None:
        files["etc/nv_tegra_release"] = f"{release}\n"
    if tensorrt is not None:
        for name in (f"libnvinfer.so.{tensorrt}", "libnvinfer.so.10", "libnvinfer.so"):
            files[f"usr/lib/aarch64-linux-gnu/{name}"] = ""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
