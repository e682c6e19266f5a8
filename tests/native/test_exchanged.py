"""Between the check and the load: what was written so shortly before that its times tell nothing is hashed again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from .native import Library, checked, tool
from .test_predict import STORED

ROOT = Path(__file__).parents[2]
# The clock of file systems before Linux 6.13, which tells no writes apart that lie some milliseconds beside each other;
# here, half a second.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
static int coarse(int status, struct stat *found) {
  if (status == 0) {
    found->st_mtim.tv_nsec -= found->st_mtim.tv_nsec % 500000000;
    found->st_ctim.tv_nsec -= found->st_ctim.tv_nsec % 500000000;
  }
  return status;
}
int lstat(const char *path, struct stat *found) {
  int (*real)(const char *, struct stat *) = dlsym(RTLD_NEXT, "lstat");
  return coarse(real(path, found), found);
}
int fstat(int file, struct stat *found) {
  int (*real)(int, struct stat *) = dlsym(RTLD_NEXT, "fstat");
  return coarse(real(file, found), found);
}
"""
# ONNX Runtime, before which a file is written to: with one thread it is loaded after every file was hashed.
ENGINE = """
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void write_over(void) {
  FILE *file = fopen(getenv("WRITTEN"), "r+b");
  fseek(file, 100000, SEEK_SET);
  const int byte = fgetc(file);
  fseek(file, 100000, SEEK_SET);
  fputc(byte ^ 1, file);
  fclose(file);
}
const void *OrtGetApiBase(void) {
  const void *(*get)(void) = dlsym(dlopen(getenv("REAL"), RTLD_NOW), "OrtGetApiBase");
  return get();
}
"""
OPENED = """
import sys, time
from pathlib import Path
from tests.native.native import Library, NativeError
library, written = Library(Path(sys.argv[1]), {"onnxruntime": Path(sys.argv[2])}), Path(sys.argv[4])
time.sleep(0.5 - time.time() % 0.5)
written.write_bytes(written.read_bytes())
try:
    library.open(sys.argv[3], threads=1)
except NativeError as error:
    print(error.status, error)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))


def test_a_file_that_is_written_to_twice_in_a_tick(library: Library, folder: Path, tmp_path: Path) -> None:
    """As many bytes, and the same times: an answer of other weights than those that were hashed."""
    for name, source in {"clock": CLOCK, "engine": ENGINE}.items():
        (tmp_path / f"{name}.c").write_text(source)
        checked([tool("gcc"), "-shared", "-fPIC", str(tmp_path / f"{name}.c"), "-o", str(tmp_path / f"{name}.so")])
    weights = folder / "onnx/weights.bin"
    more = {"LD_PRELOAD": str(tmp_path / "clock.so"), "REAL": str(library.engines["onnxruntime"])}
    arguments = [str(library.path), str(tmp_path / "engine.so"), str(folder), str(weights)]
    said = checked([sys.executable, "-c", OPENED, *arguments], PYTHONPATH=str(ROOT), WRITTEN=str(weights), **more)
    assert said.startswith(f"DIGEST_MISMATCH {weights} has {weights.stat().st_size} bytes and another SHA-256")
