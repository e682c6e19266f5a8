"""Fetches what aarch64 needs on a machine of another kind: python tests/native/fetch_aarch64.py FOLDER

Into FOLDER: Debian's libcrypto and zlib for arm64, ONNX Runtime's wheel for aarch64, and a root for qemu-aarch64. Only
packages' own clients are asked (apt-get, pip); nothing is installed. Compiler and emulator are Debian packages:
apt-get install g++-aarch64-linux-gnu qemu-user.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

PACKAGES = ("libssl3", "libssl-dev", "zlib1g", "zlib1g-dev")
# qemu-user shows the host's /proc/cpuinfo, in which ONNX Runtime's cpuinfo finds no processor of its kind, and fails.
CPU = """processor\t: {number}
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""


def fetch(folder: Path) -> None:
    folder = folder.resolve()
    for name in ("lists/partial", "debs/partial", "root/proc", "wheels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State::Lists": str(folder / "lists"),
        "Dir::State::status": "/dev/null",
        "Dir::Cache::archives": str(folder / "debs"),
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *(f"{name}:arm64" for name in PACKAGES)], cwd=folder / "debs", check=True)
    for package in (folder / "debs").glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    version = metadata.version("onnxruntime")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (27, 28)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    subprocess.run([*pip, f"onnxruntime=={version}", "-d", str(folder / "wheels")], check=True)
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if name.startswith("onnxruntime/capi/libonnxruntime.so."):
                    (folder / "libonnxruntime.so").write_bytes(opened.read(name))
    loader = folder / "root/lib/ld-linux-aarch64.so.1"
    if not loader.is_symlink():
        loader.symlink_to("/usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1")
    (folder / "root/proc/cpuinfo").write_text("\n".join(CPU.format(number=number) for number in range(2)) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))
